"""The question of the project on an image folder: what do soft labels give, at which T, alpha and number of views?

Trains and tests every row of docs/results.md from one cache, several runs at a time on a thread each; finished runs are
left alone, interrupted ones go on. Prints the tables of what stands and draws WORK/curves.png, with --summary at once.
Run: python benchmarks/student_table.py DATA t.h5 WORK --jobs 2
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 2)
SCORES = ("accuracy", "balanced_accuracy", "macro_f1")
SMALL, LARGE = "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"
LONGEST = {SMALL: 90, LARGE: 45}
"""Epochs of the longest runs, up to the plateau."""
BASE: dict[str, Any] = {
    "student": SMALL, "student_size_px": 64, "batch_size": 64, "temperature": 2.0, "alpha": 0.3, "epochs": 30,
    "n_views": 8, "label_fraction": 1.0,
}  # fmt: skip
ARMS: dict[str, dict[str, Any]] = {
    "hard labels, cached views": {"teacher": False},
    "hard labels, fresh views": {"teacher": False, "fresh_views": True, "n_views": 0},
    "soft and hard labels": {},
    "soft labels only": {"alpha": 0.0},
}


@dataclass(frozen=True)
class Row:
    """One row of one table: settings that three seeds share."""

    table: str
    name: str
    settings: dict[str, Any]

    def folder(self, work: Path, seed: int) -> Path:
        """Where one of its runs stands; rows of the same settings share their runs."""
        text = json.dumps(self.settings, sort_keys=True)
        return work / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}-{seed}"


def rows() -> Iterator[Row]:
    """Every row, by table."""
    yield from _arms(SMALL, 1.0, 10, 30, LONGEST[SMALL])
    yield from _arms(LARGE, 1.0, LONGEST[LARGE])
    yield from _arms(SMALL, 0.1, 30)
    for temperature in (1.0, 2.0, 4.0, 8.0):
        yield _row("T", f"T {temperature:g}", temperature=temperature)
    for alpha in (0.0, 0.3, 0.5, 0.9):
        yield _row("alpha", f"alpha {alpha:g}", alpha=alpha)
    for n_views in (1, 2, 4, 8, 16):
        yield _row("views", f"{n_views} view{'s' * (n_views > 1)}", n_views=n_views)
    for batch_size in (32, 64):
        yield _row("batch", f"batches of {batch_size}", batch_size=batch_size)


def _row(table: str, name: str, **changes: Any) -> Row:
    return Row(table, name, BASE | changes)


def _arms(student: str, fraction: float, *lengths: int) -> Iterator[Row]:
    """The four arms in each length."""
    for name, changes in ARMS.items():
        for epochs in lengths:
            # Hard labels alone see the labelled images only: as many steps take as many more epochs.
            passes = round(epochs / fraction) if changes.get("teacher") is False else epochs
            settings = {"student": student, "epochs": passes, "label_fraction": fraction}
            yield _row(f"{student}, {fraction:.0%} of the labels", f"{name}, {passes} epochs", **settings, **changes)


def run(row: Row, seed: int, data: Path, cache: Path, work: Path) -> float:
    """Train and test one run; CPU seconds of this process."""
    import torch

    from pipeline.evaluate import EvaluateConfig, evaluate
    from pipeline.process import tune_allocator
    from pipeline.train import TrainConfig, train

    tune_allocator()
    torch.set_num_threads(1)
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    started, folder = time.process_time(), row.folder(work, seed)
    if (folder / "test.json").exists():
        return 0.0
    train(
        data, cache, folder, TrainConfig(**row.settings, seed=seed), resume=(folder / "last.pt").exists(), anyway=True,
        workers=0, device="cpu", report=False,
    )  # fmt: skip
    found = evaluate(folder, data, EvaluateConfig(split="test"), cache=cache, workers=0, device="cpu").splits["test"]
    spent_s = time.process_time() - started
    scores = {name: getattr(found.student.metrics, name) for name in SCORES}
    result = {"settings": row.settings, "seed": seed, "cpu_s": spent_s, "student": scores}
    (folder / "test.json").write_text(json.dumps(result))
    return spent_s


def summarise(work: Path) -> None:
    """The tables of what stands, as Markdown, and the curves of the longest runs."""
    tables: dict[str, list[Row]] = {}
    for row in rows():
        tables.setdefault(row.table, []).append(row)
    spent_s: dict[Path, float] = {}
    for table, its_rows in tables.items():
        print(f"\n{table}\n\n| | seeds | accuracy | balanced accuracy | macro F1 |\n|---|---|---|---|---|")
        for row in its_rows:
            found = {run: json.loads((run / "test.json").read_text()) for run in finished(row, work)}
            if found:
                spent_s |= {run: max(result["cpu_s"], _trained_s(run)) for run, result in found.items()}
                cells = [_mean_and_spread([one["student"][score] for one in found.values()]) for score in SCORES]
                print(f"| {row.name} | {len(found)} | {' | '.join(cells)} |")
    print(f"\n{len(spent_s)} runs, {sum(spent_s.values()) / 3600:.1f} hours of one thread")
    draw_curves(work / "curves.png", work)


def finished(row: Row, work: Path) -> list[Path]:
    """The runs of a row that stand, by seed."""
    folders = [row.folder(work, seed) for seed in SEEDS]
    return [folder for folder in folders if (folder / "test.json").exists()]


def _trained_s(run: Path) -> float:
    """CPU seconds of all epochs, also where the run was interrupted."""
    return sum(float(epoch["cpu_s"]) for epoch in _metrics(run))


def _metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def _mean_and_spread(values: list[float]) -> str:
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def draw_curves(file: Path, work: Path) -> None:
    """Validation scores of every epoch of the longest runs on all labels: mean of the seeds, lowest and highest."""
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(9, 8), layout="constrained")
    panels = figure.subplots(len(SCORES), len(LONGEST), sharex="col", sharey="row")
    for column, (student, n_epochs) in enumerate(LONGEST.items()):
        panels[0, column].set_title(student)
        panels[-1, column].set_xlabel("epoch")
        for row in _arms(student, 1.0, n_epochs):
            tables = [_metrics(run) for run in finished(row, work)]
            for score, axes in zip(SCORES, panels[:, column], strict=True):
                if tables:
                    curves = np.array([[float(epoch[f"val_{score}"]) for epoch in table] for table in tables])
                    epochs = np.arange(1, curves.shape[1] + 1)
                    (line,) = axes.plot(epochs, curves.mean(axis=0), label=row.name.rpartition(",")[0])
                    axes.fill_between(
                        epochs, curves.min(axis=0), curves.max(axis=0), alpha=0.15, color=line.get_color()
                    )
    for score, axes in zip(SCORES, panels[:, 0], strict=True):
        axes.set_ylabel(f"validation {score.replace('_', ' ').replace('f1', 'F1')}")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    panels[-1, 0].legend(fontsize="small", loc="lower right")
    figure.savefig(file, dpi=100)
    Image.open(file).convert("RGB").quantize(64).save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path, help="with 16 views of every train image")
    parser.add_argument("work", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--only", default="", help="tables whose name begins so")
    parser.add_argument("--summary", action="store_true", help="train nothing")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if not given.summary:
        train_all([row for row in rows() if row.table.startswith(given.only)], given)
    summarise(given.work)


def train_all(wanted: list[Row], given: argparse.Namespace) -> None:
    """Every run of these rows that is not finished."""
    context = multiprocessing.get_context("spawn")
    distinct: dict[Path, tuple[Row, int]] = {}
    for row in wanted:
        for seed in SEEDS:
            distinct.setdefault(row.folder(given.work, seed), (row, seed))
    with ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        jobs = {
            pool.submit(run, row, seed, given.data, given.cache, given.work): (row, seed)
            for row, seed in distinct.values()
        }  # fmt: skip
        for job, (row, seed) in jobs.items():
            print(f"{row.table}: {row.name}, seed {seed}: {job.result():.0f} s", flush=True)


if __name__ == "__main__":
    main()
