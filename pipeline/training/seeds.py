"""Several runs that differ by their seed alone: `train --seeds 5` -> RUN/seed-<s>/ and RUN/seeds.json, mean and spread.

Each run is a run folder of its own, as `pipeline.train` makes it. Run: softlabel train DATA t.h5 -o RUN --seeds 5
"""

from __future__ import annotations

import json
import logging
import shlex
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache import durable
from pipeline.errors import OutputExists, RunError
from pipeline.outputs import check_output_folder
from pipeline.runs import RunFolder, is_finished, seed_runs
from pipeline.training.config import TrainConfig, other_settings

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
    run: Callable[[Path, TrainConfig, bool], object],
    *,
    resume: bool,
) -> SeedsResult:  # fmt: skip
    """Run the seeds config.seed, +1, ... one after the other; with `resume` those that are finished stay as they are.

    Mean and spread are over all finished seeds of the folder, those of earlier calls included.

    `run(folder, config, resume)` trains one. Raises OutputExists or RunError before the first.
    """
    out = Path(out)
    check_output_folder(out)
    wanted = range(config.seed, config.seed + n_seeds)
    _check_begun(out, resume)
    every = sorted({*wanted, *_finished_seeds(out)}, key=lambda seed: (seed in wanted, seed))  # earlier calls' first
    for seed in every:
        _check_settings(RunFolder(out / f"seed-{seed}"), replace(config, seed=seed))
    rows, seal = dict[int, dict[str, Any]](), ""
    for seed in every:
        folder = RunFolder(out / f"seed-{seed}")
        if not _is_finished(folder):
            number = seed - config.seed + 1
            log.info("seed     %d (%d of %d) in %s", seed, number, n_seeds, shlex.quote(str(folder.path)))
            run(folder.path, replace(config, seed=seed), resume and folder.last.exists())
        last = folder.load_last()
        seal = seal or last["ids"]["seal"]
        if last["ids"]["seal"] != seal:
            raise RunError(f"{folder.path} learned from another cache than the seeds before it: choose another -o")
        rows[seed] = {"seed": seed, **last["metrics"][last["best"]["epoch"] - 1]}
    result = SeedsResult(out, tuple(rows[seed] for seed in sorted(rows)))
    durable.write_atomic(out / SUMMARY_NAME, (json.dumps(result.to_dict(), indent=1) + "\n").encode())
    return result


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
