"""A finished student measured: the numbers of each split, for JSON, tables, figures and the report alike.

Computes nothing (`pipeline.metrics.scoring` does). N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.bootstrap import Intervals
from pipeline.metrics.classification import Agreement
from pipeline.metrics.full import FullMetrics
from pipeline.metrics.objective import Objective
from pipeline.metrics.sensitivity import OperatingPoint
from pipeline.metrics.subgroups import Subgroup

RETAINED = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc")
"""Of which more is better, so that a share of the teacher's means something."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What student and teacher said of the clean views of one split's images, in the order of their content keys."""

    split: str
    source: str
    """Where its images are from where that is not the split of this name, for people; else empty."""
    names: tuple[str, ...]
    """Paths relative to the data folder."""
    keys: tuple[bytes, ...]
    labels_N: NDArray[np.int64]
    student_NC: NDArray[np.float32]
    """Raw logits, columns in the order of the student's classes."""
    teacher_NC: NDArray[np.float32] | None
    learned_N: NDArray[np.bool_] | None
    """Whether the student learned from the image; None where the model does not say, as an exported file."""
    teacher_seen_N: NDArray[np.bool_] | None
    """Whether the teacher is known to have been fitted on it; None without a teacher."""


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """One model on one split."""

    metrics: FullMetrics
    intervals: Intervals
    """Headline score -> interval; empty where there are fewer than two groups to draw."""
    class_intervals: dict[str, Intervals]
    """Class name -> score -> interval."""
    sensitivity: OperatingPoint | None
    """Where a class group was asked for and the split has images outside of it."""


@dataclass(frozen=True, kw_only=True)
class SplitEvaluation:
    """A student on one split, and its teacher on the same images where the cache holds them."""

    answers: Answers
    n_learned: int | None
    """Images here that the student learned from: its scores on them say nothing of new ones. None where unknown."""
    n_teacher_seen: int | None
    """Images here that the teacher is known to have been fitted on; None without a teacher."""
    unit: str
    """What the bootstrap draws: `image`, or the column of the groups."""
    n_units: int
    n_resamples: int
    student: ModelScores
    teacher: ModelScores | None
    agreement: Agreement | None
    differences: dict[str, float | None]
    """Headline score -> student - teacher; empty without a teacher."""
    difference_intervals: Intervals
    """Paired: both models in the same resamples."""
    retention_percent: dict[str, float | None]
    """Score of RETAINED -> 100 * student / teacher."""
    subgroups: tuple[Subgroup, ...]
    objective: Objective | None = None
    """What it is worth to somebody who counts bytes, too, where that was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; without the answers themselves, which `predictions.csv` has."""
        left_out = {"answers", *(["objective"] if self.objective is None else [])}
        found = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in left_out}
        return {"split": self.answers.split, "source": self.answers.source, **found}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One student on the splits that were asked for."""

    model: str
    """The path it was loaded from."""
    classes: tuple[str, ...]
    splits: dict[str, SplitEvaluation]
    """Split -> scores, in the order train, val, test."""
    notices: tuple[str, ...] = ()
    """What a reader of the scores must know, such as an interrupted run."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        splits = {name: split.to_dict() for name, split in self.splits.items()}
        return {"model": self.model, "classes": list(self.classes), "notices": list(self.notices), "splits": splits}

    def to_table(self) -> str:
        """For people: totals, operating point, per-class scores, subgroups, confusion matrix of every split."""
        from pipeline.metrics.tables import evaluation_table

        return evaluation_table(self)


@dataclass(frozen=True)
class Spread:
    """A score over seeds."""

    mean: float
    std: float | None
    """Of the sample, n - 1; None of a single seed."""
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SeedsEvaluation:
    """The students of several seeds."""

    model: str
    seeds: dict[str, Evaluation]
    """Name of the run folder, such as seed-0 -> its scores."""
    spread: dict[str, dict[str, Spread]]
    """Split -> score, with "agreement", "kl_nats" and "sensitivity" where there are -> over seeds."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        seeds = {name: one.to_dict() for name, one in self.seeds.items()}
        return {"model": self.model, "spread": _plain(self.spread), "seeds": seeds}

    def to_table(self) -> str:
        """For people: mean, standard deviation and each seed's own scores of every split."""
        from pipeline.metrics.tables import seeds_table

        return seeds_table(self)


@dataclass(frozen=True, kw_only=True)
class TaskMeans:
    """One split's scores, each the mean over the tasks; None where a task has none."""

    student: dict[str, float | None]
    """Score of RETAINED -> mean."""
    teacher: dict[str, float | None] | None


@dataclass(frozen=True, kw_only=True)
class TasksEvaluation:
    """One student in each task that it was asked about."""

    model: str
    tasks: dict[str, Evaluation]
    mean: dict[str, TaskMeans]
    """Split -> means over the tasks; splits in which a task has no labels are absent."""
    notices: tuple[str, ...] = ()
    """What concerns all tasks."""
    is_single: bool = False
    """Whether the student has one task alone."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        tasks = {task: one.to_dict() for task, one in self.tasks.items()}
        return {"model": self.model, "notices": list(self.notices), "tasks": tasks, "mean": _plain(self.mean)}

    def to_table(self) -> str:
        """For people: the table of each task, then the means."""
        from pipeline.metrics.tables import tasks_table

        return tasks_table(self)


@dataclass(frozen=True, kw_only=True)
class TasksSeedsEvaluation:
    """The students of several seeds in each task that they were asked about."""

    model: str
    tasks: dict[str, SeedsEvaluation]
    mean: dict[str, dict[str, Spread]]
    """Split -> score of RETAINED, the mean over the tasks -> over seeds."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        tasks = {task: one.to_dict() for task, one in self.tasks.items()}
        return {"model": self.model, "tasks": tasks, "mean": _plain(self.mean)}

    def to_table(self) -> str:
        """For people: the table of each task, then the means."""
        from pipeline.metrics.tables import tasks_seeds_table

        return tasks_seeds_table(self)


AnyEvaluation = Evaluation | SeedsEvaluation | TasksEvaluation | TasksSeedsEvaluation


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as what JSON has; the metrics of a model stand among its other scores."""
    if isinstance(value, ModelScores):
        rest = {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name != "metrics"}
        return {**value.metrics.to_dict(), **rest}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value
