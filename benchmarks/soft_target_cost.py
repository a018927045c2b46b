"""What soft targets add to a training step: gathering a batch's cached logits, and their part of the loss.

Times, in turns, what a step does with labels alone (the loss of the student's logits, forward and backward) and what
it does with both, gather included. The cache holds random numbers; batches are random rows of all of it.
Run: python benchmarks/soft_target_cost.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timing import estimate, interleaved, machine_line, markdown

from cache import CacheReader, Manifest
from cache.fill import Table, write_table
from data.samples import FOLDER_TASK
from data.views import COLUMNS, ViewPolicy
from pipeline.losses.distillation import distillation_loss
from pipeline.recipe import view_identity
from pipeline.targets import StoredTask, TeacherTargets
from pipeline.tasks import Tasks
from pipeline.training.soft_targets import SoftTargets

VIEWS, CLASSES = 8, tuple(f"class {number}" for number in range(7))


def write_cache(path: Path, n_samples: int) -> None:
    """A cache of random logits."""
    generator = np.random.default_rng(0)
    n_rows = n_samples * VIEWS
    identity = {"tasks": [{"name": FOLDER_TASK, "classes": list(CLASSES)}], **view_identity(ViewPolicy(), 0)}
    table = Table(
        key=np.unique(generator.integers(0, 256, (n_samples, 16), np.uint8), axis=0),
        first_row=np.arange(0, n_rows + 1, VIEWS, dtype="<u8"),
        view=np.tile(np.arange(VIEWS, dtype="<u2"), n_samples),
        params=np.zeros((n_rows, len(COLUMNS)), "<f4"), witness=np.zeros((n_rows, 12), np.uint8),
        logits={FOLDER_TASK: generator.standard_normal((n_rows, len(CLASSES)), np.float32)}, features={},
    )  # fmt: skip
    write_table(path, Manifest(identity, {}), table)


def milliseconds(work: Callable[[NDArray[np.int64]], None], n_rows: int, batch_size: int, n_batches: int) -> float:
    """Of a batch, the mean over many."""
    generator = np.random.default_rng(1)
    batches = [generator.integers(0, n_rows, batch_size) for _ in range(n_batches)]
    for rows in batches[:10]:
        work(rows)
    started = time.perf_counter()
    for rows in batches:
        work(rows)
    return (time.perf_counter() - started) / n_batches * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    print(machine_line())
    torch.set_num_threads(1)
    student = torch.randn(given.batch_size, len(CLASSES), requires_grad=True)
    labels = torch.randint(0, len(CLASSES), (given.batch_size,))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.h5")
        write_cache(path, given.samples)
        reader = CacheReader(path, memory_map=False)
        every = np.arange(reader.n_samples)
        stored = {FOLDER_TASK: StoredTask(FOLDER_TASK, tuple(range(len(CLASSES))))}
        tasks = Tasks({FOLDER_TASK: CLASSES})
        targets = TeacherTargets(reader, [], every, np.zeros((len(every), 1), np.int64), tasks, stored)

        soft = SoftTargets(targets, "view")

        def gathered(rows: NDArray[np.int64]) -> None:
            torch.from_numpy(soft(rows))

        def learned(rows: NDArray[np.int64], *, taught: bool) -> None:
            teacher = torch.from_numpy(soft(rows)) if taught else None
            distillation_loss(student, teacher, labels, temperature=4.0, alpha=0.3).total.backward()
            student.grad = None

        timed = partial(milliseconds, n_rows=reader.n_rows, batch_size=given.batch_size, n_batches=given.batches)
        found = interleaved(
            {
                "labels alone": partial(timed, partial(learned, taught=False)),
                "both": partial(timed, partial(learned, taught=True)), "gather alone": partial(timed, gathered),
            }, given.rounds,
        )  # fmt: skip
    extra = [both - alone for both, alone in zip(found["both"], found["labels alone"], strict=True)]
    rows = [(name, f"{estimate(values)} ms") for name, values in {**found, "soft targets' extra": extra}.items()]
    print(markdown((f"{given.samples:,} samples of {VIEWS} views", f"a batch of {given.batch_size}"), rows))


if __name__ == "__main__":
    main()
