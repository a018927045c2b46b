"""What is known of a finished run, as numbers: its rows, how its teacher answers, what its student scores.

Judges nothing (`pipeline.training.verdicts` does), trains nothing. Run: softlabel report RUN DATA
N samples, R rows of the cache, K classes that have samples, C classes, E epochs, T temperature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.gate.calibration import mean_entropy
from pipeline.metrics.calibration import confidence
from pipeline.training.rows import CHOSEN

if TYPE_CHECKING:
    from pipeline.gate.report import TeacherReport
    from pipeline.metrics import Metrics
    from pipeline.targets import TeacherTargets

MIN_EPOCHS = 4
"""Of a trend: a line through three points has one degree of freedom left for its error."""


@dataclass(frozen=True)
class Softened:
    """A teacher's answers at one temperature, means over images."""

    entropy_share: float
    """Entropy over log C, in [0, 1]."""
    top1: float
    """Largest probability, in [1 / C, 1]."""


@dataclass(frozen=True, kw_only=True)
class TeacherNumbers:
    """What the verdicts look at in a teacher."""

    report: TeacherReport
    softened: Mapping[float, Softened]
    """Temperature of the run -> its answers to the validation images."""
    train_accuracy: float
    """On the clean train views."""
    train_views_accuracy: float
    """On all train views, which are those that the student sees."""
    n_parameters: int | None = None


@dataclass(frozen=True, kw_only=True)
class StudentNumbers:
    """What the verdicts look at in a student."""

    metrics: Metrics
    """Of the best epoch, on the validation images."""
    n_parameters: int | None = None


def teacher_numbers(
    report: TeacherReport, val: TeacherTargets, train: TeacherTargets, settings: Mapping[str, Any],
    n_parameters: int | None = None,
) -> TeacherNumbers:  # fmt: skip
    """The numbers of a teacher in one task, whose answers a run with these settings learned from."""
    val_NC = val.teacher_logits(val.clean_rows())
    first = train.reader.first_row.astype(np.int64)[train.index_N]  # view 0 where there is one: the clean view
    rows, owner = train.all_rows(first)
    right_R = train.teacher_logits(rows).argmax(axis=1) == train.labels_N[owner]
    right_N = train.teacher_logits(first).argmax(axis=1) == train.labels_N
    return TeacherNumbers(
        report=report,
        softened={t: soften(val_NC, t) for t in temperatures_of(settings)},
        train_accuracy=float(right_N.mean()),
        train_views_accuracy=float(right_R.mean()),
        n_parameters=n_parameters,
    )


def soften(logits_NC: NDArray[np.floating], temperature: float) -> Softened:
    """The answers at a temperature."""
    most = math.log(logits_NC.shape[1])
    return Softened(mean_entropy(logits_NC, temperature) / most, float(confidence(logits_NC / temperature).mean()))


def temperatures_of(settings: Mapping[str, Any]) -> tuple[float, ...]:
    """The T's that a run begins and ends with, the lower first."""
    start = float(settings["temperature"])
    return tuple(sorted({start, float(settings.get("temperature_end") or start)}))


@dataclass(frozen=True)
class Trend:
    """A straight line through the values of some epochs."""

    change: float
    """From the first of them to the last."""
    standard_error: float
    """Of that change, from the scatter about the line."""

    def rises(self, at_least: float) -> bool:
        """By so much, and beyond two standard errors."""
        return self.change >= at_least and self.change > 2 * self.standard_error


@dataclass(frozen=True)
class Run:
    """The rows of a run, its settings, its teacher and student, as far as they are known."""

    rows: Sequence[Mapping[str, Any]]
    """Of metrics.csv, in one task, numbers; None, or no entry, where nothing was measured."""
    settings: Mapping[str, Any]
    teacher: TeacherNumbers | None
    """None where there is no cache, and for hard labels alone."""
    student: StudentNumbers | None

    def column(self, name: str) -> NDArray[np.float64]:
        """One column, NaN where there is nothing; float64 [E]."""
        return np.array([np.nan if row.get(name) is None else float(row[name]) for row in self.rows])

    def mean(self, name: str, epochs: slice = slice(None)) -> float | None:
        """Mean of a column over some epochs; None where any is missing."""
        values = self.column(name)[epochs]
        return float(values.mean()) if len(values) and np.isfinite(values).all() else None

    def trend(self, name: str) -> Trend | None:
        """Of a column over the last quarter; None where that is too short, or something is missing."""
        from scipy.stats import linregress

        values = self.column(name)[self.last_quarter]
        if len(values) < MIN_EPOCHS or not np.isfinite(values).all():
            return None
        line = linregress(np.arange(len(values)), values)
        steps = len(values) - 1
        return Trend(float(line.slope) * steps, float(line.stderr) * steps)

    @property
    def last_quarter(self) -> slice:
        """The last quarter of the epochs, but at least MIN_EPOCHS."""
        return slice(-max(MIN_EPOCHS, math.ceil(len(self.rows) / 4)), None)

    @property
    def best(self) -> Mapping[str, Any]:
        """The row of the epoch whose student the run keeps: the first of the best."""
        return max(self.rows, key=lambda row: row.get(CHOSEN, row["val_macro_f1"]))


def accuracy_error(accuracy: float, n_samples: int) -> float:
    """Standard error of a share of N independent images."""
    return math.sqrt(accuracy * (1 - accuracy) / n_samples)


def balanced_error(metrics: Metrics) -> float:
    """Standard error of balanced accuracy: that of a mean of K independent shares.

    Shares are taken as (right + 1) / (images + 2), or a class of three images that are all wrong would seem certain.
    """
    images = np.array(metrics.confusion).sum(axis=1)
    right = np.diag(np.array(metrics.confusion))[images > 0]
    images = images[images > 0]
    share = (right + 1) / (images + 2)
    return float(np.sqrt((share * (1 - share) / images).sum()) / len(images))
