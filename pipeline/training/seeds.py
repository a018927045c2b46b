"""Several runs that differ by their seed alone: `train --seeds 5` -> RUN/seed-<s>/ and RUN/seeds.json, mean and spread.

Each run is a run folder of its own, as `pipeline.train` makes it. Run: softlabel train DATA t.h5 -o RUN --seeds 5
"""

from __future__ import annotations

import json
import logging
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cache import durable
from pipeline.errors import OutputExists, RunError, SettingError
from pipeline.outputs import check_output_folder
from pipeline.runs import RunFolder, is_finished, seed_runs
from pipeline.training.config import TrainConfig, other_settings
from pipeline.training.side_by_side import Job, Run, is_possible, run_side_by_side

log = logging.getLogger(__name__)

SUMMARY_NAME = "seeds.json"
_SCORES = ("val_accuracy", "val_balanced_accuracy", "val_macro_f1", "val_loss", "val_agreement", "val_kl")


@dataclass(frozen=True)
class SeedsResult:
    """All runs of one configuration, each at its best epoch."""

    path: Path
    rows: tuple[dict[str, Any], ...]
    """The row of metrics.csv of each run's best epoch, and its `seed`."""

    def mean_and_spread(self, column: str) -> tuple[float, float]:
        """Mean and standard deviation (n - 1; 0 of a single run) over the seeds."""
        values = [float(row[column]) for row in self.rows]
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {column: self.mean_and_spread(column) for column in _SCORES}
        summary = {column: {"mean": mean, "std": spread} for column, (mean, spread) in found.items()}
        return {"seeds": [row["seed"] for row in self.rows], "best_epochs": summary, "runs": list(self.rows)}


def train_seeds(
    out: str | Path,
    config: TrainConfig,
    n_seeds: int,
    run: Run,
    *,
    resume: bool,
    at_once: int = 1,
    threads: int = 1,
) -> SeedsResult:  # fmt: skip
    """Run the seeds config.seed, +1, ...; with `resume` those that are finished stay as they are.

    Mean and spread are over all finished seeds of the folder, those of earlier calls included.
    `run(folder, config, resume)` trains one, in this process or, where several run `at_once`, in processes of their own
    on `threads` threads each. Raises OutputExists or RunError before the first.
    """
    out = Path(out)
    check_output_folder(out)
    wanted = range(config.seed, config.seed + n_seeds)
    _check_begun(out, resume)
    every = sorted({*wanted, *_finished_seeds(out)}, key=lambda seed: (seed in wanted, seed))  # earlier calls' first
    for seed in every:
        _check_settings(RunFolder(out / f"seed-{seed}"), replace(config, seed=seed))
    folders = {seed: RunFolder(out / f"seed-{seed}") for seed in every}
    left = [
        Job(f"seed {seed}", folder.path, replace(config, seed=seed), resume and folder.last.exists())
        for seed, folder in folders.items() if not _is_finished(folder)
    ]  # fmt: skip
    _run(left, run, at_once, threads)
    rows, seal = dict[int, dict[str, Any]](), ""
    for seed, folder in folders.items():
        last = folder.load_last()
        seal = seal or last["ids"]["seal"]
        if last["ids"]["seal"] != seal:
            raise RunError(f"{folder.path} learned from another cache than the seeds before it: choose another -o")
        rows[seed] = {"seed": seed, **last["metrics"][last["best"]["epoch"] - 1]}
    result = SeedsResult(out, tuple(rows[seed] for seed in sorted(rows)))
    durable.write_atomic(out / SUMMARY_NAME, (json.dumps(result.to_dict(), indent=1) + "\n").encode())
    return result


def share_cores(n_runs: int, device: str, *, at_once: int | None, threads: int | None) -> tuple[int, int]:
    """(how many runs at the same time, threads of each): on a CPU a run a core, on another device one after another.

    More than one on a GPU was not measured. SettingError where this system cannot do what was asked for.
    """
    if at_once is not None and at_once > 1 and not is_possible():
        raise SettingError(f"this system cannot train {at_once} seeds at the same time: leave out --at-once")
    cores = torch.get_num_threads()  # respects OMP_NUM_THREADS, and the cores that this process may use
    if at_once is None:
        at_once = max(1, min(n_runs, cores // (threads or 1))) if device == "cpu" and is_possible() else 1
    return at_once, threads or max(1, cores // at_once)


def _run(jobs: Sequence[Job], run: Run, at_once: int, threads: int) -> None:
    if at_once > 1 and len(jobs) > 1:
        log.info("seeds    %d runs, %d at once on %d threads each", len(jobs), min(at_once, len(jobs)), threads)
        run_side_by_side(jobs, run, at_once, threads)
        return
    for number, job in enumerate(jobs):
        where = shlex.quote(str(job.folder))
        log.info("%-8s %d (%d of %d) in %s", "seed", job.config.seed, number + 1, len(jobs), where)
        run(job.folder, job.config, job.resume)


def _is_finished(folder: RunFolder) -> bool:
    return folder.last.exists() and is_finished(folder.load_last())


def _finished_seeds(out: Path) -> list[int]:
    """The seeds of earlier calls."""
    return [int(path.name.removeprefix("seed-")) for path in seed_runs(out) if _is_finished(RunFolder(path))]


def _check_begun(out: Path, resume: bool) -> None:
    """OutputExists where something is there and is not to be gone on with; RunError where it is a single run."""
    if resume:
        if RunFolder(out).last.exists():
            raise RunError(f"{out} is a single run: go on with it without --seeds")
        return
    # A start that was killed before its first state left nothing.
    blank = {folder for folder in seed_runs(out) if not RunFolder(folder).exists()}
    if out.exists() and any(path not in blank for path in out.iterdir()):
        go_on = "go on with it by --resume, or " if seed_runs(out) else ""
        raise OutputExists(f"{out} is not empty: {go_on}choose another -o")


def _check_settings(folder: RunFolder, one: TrainConfig) -> None:
    """RunError where a seed is there with other settings: no mean over it and others would say anything."""
    if folder.last.exists() and (differing := other_settings(folder.load_last()["config"], one)):
        raise RunError(f"{folder.path} was trained with other settings:\n  " + "\n  ".join(differing))
