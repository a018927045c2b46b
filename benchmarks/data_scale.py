"""How long it takes until training begins: 10,000 image files from Enter to the first step, a million keys joined.

The first step is timed in a process of its own, warm: the files were read and hashed before. The million samples have
no files; their cache is written by the writer's own code.
Run: python benchmarks/data_scale.py WORK
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cache import CacheReader, Manifest, Table
from cache.fill import write_table
from data.samples import FOLDER_TASK, Sample
from data.views import COLUMNS, ViewPolicy
from pipeline.demo.lesions import write_lesions
from pipeline.joining import join
from pipeline.recipe import view_identity

N_IMAGES, N_KEYS, ROUNDS = 10_000, 1_000_000, 5
CLASSES = tuple(f"class {number}" for number in range(7))
FIRST_STEP = """
import os, sys, time
began = float(sys.argv[1])
import pipeline.training.learner as learner
step = learner.Learner.step
def first(*arguments, **options):
    step(*arguments, **options)
    print(f"{time.time() - began:.3f}", flush=True)
    os._exit(0)
learner.Learner.step = first
from pipeline.cli import run
sys.exit(run(sys.argv[2:]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=N_IMAGES)
    parser.add_argument("--keys", type=int, default=N_KEYS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    time_first_step(arguments.work, arguments.images)
    time_join(arguments.work, arguments.keys)


def time_first_step(work: Path, n_images: int) -> None:
    """`softlabel train` of x0.5 at 96 px with all defaults, a process each round."""
    data, cache = work / "images", work / "t.h5"
    if not data.exists():
        per_class = n_images // 5
        write_lesions(
            data, {"train": per_class * 8 // 10, "val": per_class // 10, "test": per_class // 10}, size_px=224
        )
    if not cache.exists():
        softlabel = [sys.executable, "-m", "softlabel"]
        teacher = ["--teacher", "torchvision:mobilenet_v3_small", "--teacher-config", str(_described(work))]
        subprocess.run([*softlabel, "cache", "build", data, "-o", cache, "--views", "1", *teacher], check=True)
    train = ["train", data, cache, "--student", "shufflenet_v2_x0_5", "--student-size", "96", "--anyway"]
    seconds = []
    for number in range(ROUNDS + 1):
        run = work / f"run-{time.time_ns()}"
        words = [sys.executable, "-c", FIRST_STEP, str(time.time()), *map(str, [*train, "-o", run])]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        if number:  # the first one warms up
            seconds.append(float(done.stdout.split()[-1]))
    said = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, {ROUNDS} rounds)"
    print(f"{n_images:,} images, Enter to the end of the first step: {said}")


def time_join(work: Path, n_keys: int) -> None:
    """Open a cache of one view a sample, and join as many samples that come in another order."""
    path = work / f"keys-{n_keys}.h5"
    generator = np.random.default_rng(0)
    keys = np.unique(generator.integers(0, 256, (n_keys, 16), np.uint8), axis=0)
    if not path.exists():
        identity = {"tasks": [{"name": FOLDER_TASK, "classes": list(CLASSES)}], **view_identity(ViewPolicy(), 0)}
        table = Table(
            key=keys, first_row=np.arange(len(keys) + 1, dtype="<u8"), view=np.zeros(len(keys), "<u2"),
            params=np.zeros((len(keys), len(COLUMNS)), "<f4"), witness=np.zeros((len(keys), 12), np.uint8),
            logits={FOLDER_TASK: np.zeros((len(keys), len(CLASSES)), "<f4")}, features={},
        )  # fmt: skip
        write_table(path, Manifest(identity, {}), table)
    samples = [
        Sample(keys[at].tobytes(), "", "", "train", {FOLDER_TASK: CLASSES[at % len(CLASSES)]})
        for at in generator.permutation(len(keys)).tolist()
    ]
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        join(CacheReader(path, memory_map=False), {"train": samples}, ["DATA"], {FOLDER_TASK: CLASSES}, verified=True)
        seconds.append(time.perf_counter() - began)
    said = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, {ROUNDS} rounds)"
    print(f"{len(keys):,} keys: open the cache, verify it and join: {said}")


def _described(work: Path) -> Path:
    path = work / "teacher.yaml"
    path.write_text("size_px: 32\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
