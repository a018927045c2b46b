"""Sensitivity at a fixed specificity for a group of classes: how much of what must be found is found, at what price.

A group is positive where the sum of its classes' probabilities reaches a threshold. Chosen on the images that it is
measured on, a threshold flatters: choose it on others where there are any. Run: softlabel evaluate RUN DATA
--sensitivity-of mel,bcc --at-specificity 0.9
N samples, C classes, K resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SettingError, did_you_mean
from pipeline.metrics.bootstrap import Interval, Resamples, Scores, interval
from pipeline.metrics.full import probabilities


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold does on the images of one split."""

    classes: tuple[str, ...]
    """The group; all others are negative."""
    asked_specificity: float
    threshold: float
    """Positive where the summed probability is at least this; the smallest that reached the specificity where it was
    chosen, among the sums that occur there and one above them all."""
    chosen_on: str
    """The split whose images chose it."""
    same_images: bool
    """Whether those are the images that it is measured on: sensitivity and specificity are optimistic then."""
    sensitivity: float | None
    """Share of the group's images that are found; None where there are none."""
    specificity: float | None
    """Share of the others that are left alone, as reached here; None where there are none."""
    n_positive: int
    n_negative: int
    sensitivity_interval: Interval | None = None
    """Where the threshold comes from the same images, it is chosen anew in every resample."""
    specificity_interval: Interval | None = None


@dataclass(frozen=True)
class Group:
    """Scores of a group of classes on some images."""

    score_N: NDArray[np.float64]
    """Summed probability."""
    is_positive_N: NDArray[np.bool_]

    @classmethod
    def of(
        cls, logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], classes: Sequence[str], group: Sequence[str]
    ) -> Group:
        """The scores of raw logits."""
        columns = [classes.index(name) for name in group]
        return cls(probabilities(logits_NC)[:, columns].sum(axis=1), np.isin(labels_N, columns))

    def threshold(self, specificity: float) -> float | None:
        """The smallest score, or one above all, at which the share of negatives below is enough; None without any."""
        if self.is_positive_N.all():
            return None
        return float(_thresholds(self, specificity, np.ones((len(self.score_N), 1)))[0])


def group_of_task(group: Sequence[str], tasks: Mapping[str, Sequence[str]]) -> tuple[str, tuple[str, ...]]:
    """(the task that knows all these classes, the classes), both empty for no group; SettingError where none does.

    Of several tasks a class may be called `task: class`, and must be where another task knows it, too.
    """
    if not group:
        return "", ()
    in_words_of = {
        task: tuple(name if name in classes else name.removeprefix(f"{task}: ") for name in group)
        for task, classes in tasks.items()
    }
    found = {task: own for task, own in in_words_of.items() if len(tasks) == 1 or set(own) <= set(tasks[task])}
    if len(found) == 1:
        ((task, own),) = found.items()
        check_group(own, tasks[task])
        return task, own
    asked = ", ".join(f"'{name}'" for name in group)
    if found:
        first = next(iter(found))
        raise SettingError(
            f"--sensitivity-of: {' and '.join(found)} both know {asked}: say which, such as '{first}: {group[0]}'"
        )
    there_are = "; ".join(f"{task}: {', '.join(classes)}" for task, classes in tasks.items())
    raise SettingError(f"--sensitivity-of: no task knows all of {asked}. The tasks and their classes: {there_are}")


def check_group(group: Sequence[str], classes: Sequence[str]) -> None:
    """SettingError for a class that the student does not know, one named twice, or a group of all classes."""
    for name in group:
        if name not in classes:
            hint = did_you_mean(name, classes) or "."
            raise SettingError(f"--sensitivity-of: no class is called '{name}'{hint} The classes: {', '.join(classes)}")
    if len(set(group)) < len(group):
        raise SettingError(f"--sensitivity-of names a class twice: {', '.join(group)}")
    if len(group) == len(classes):
        raise SettingError("--sensitivity-of names every class: no class is left to be specific about")


def operating_point(
    images: Group, group: Sequence[str], specificity: float, *, threshold: float | None, chosen_on: str,
    resamples: Resamples | None = None,
) -> OperatingPoint | None:  # fmt: skip
    """What `threshold` does on these images; with None they choose it themselves. None where they have no negatives."""
    own = threshold is None
    at = images.threshold(specificity) if threshold is None else threshold
    if at is None:
        return None
    ones = np.ones((len(images.score_N), 1))
    point = _at_threshold(images, np.array([at]), ones)
    found = Scores()
    if resamples is not None:
        found = resamples.scores(
            lambda weights_NK: _at_threshold(
                images, _thresholds(images, specificity, weights_NK) if own else np.array([at]), weights_NK
            )
        )
    n_positive = int(images.is_positive_N.sum())
    return OperatingPoint(
        classes=tuple(group), asked_specificity=specificity, threshold=at, chosen_on=chosen_on, same_images=own,
        sensitivity=_number(point["sensitivity"]), specificity=_number(point["specificity"]),
        n_positive=n_positive, n_negative=len(images.score_N) - n_positive,
        sensitivity_interval=interval(found["sensitivity"]) if found else None,
        specificity_interval=interval(found["specificity"]) if found else None,
    )  # fmt: skip


def _at_threshold(images: Group, threshold_K: NDArray[np.float64], weights_NK: NDArray[np.float64]) -> Scores:
    """Sensitivity and specificity, float64 [K] each, under weights; NaN where a resample has no such image."""
    found: Scores = {}
    is_said_NK = images.score_N[:, None] >= threshold_K
    for name, rows_N, right_NK in (
        ("sensitivity", images.is_positive_N, is_said_NK), ("specificity", ~images.is_positive_N, ~is_said_NK),
    ):  # fmt: skip
        weights = weights_NK[rows_N]
        total_K, hits_K = weights.sum(axis=0), (weights * right_NK[rows_N]).sum(axis=0)
        found[name] = np.divide(hits_K, total_K, out=np.full(len(total_K), np.nan), where=total_K > 0)
    return found


def _thresholds(images: Group, specificity: float, weights_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """The threshold that each column of weights chooses, float64 [K]; without negatives there, the smallest score."""
    candidates = np.unique(images.score_N)
    candidates = np.append(candidates, np.nextafter(candidates[-1], np.inf))
    negative = np.flatnonzero(~images.is_positive_N)
    negative = negative[np.argsort(images.score_N[negative], kind="stable")]
    below = np.zeros((len(negative) + 1, weights_NK.shape[1]))
    np.cumsum(weights_NK[negative], axis=0, out=below[1:])
    # The negatives below the smallest threshold that will do; 1e-9 as 0.9 of 10 is not 9 in binary.
    needed_K = specificity * below[-1] - 1e-9
    count_K = (below < needed_K).sum(axis=0)
    lowest_K = np.append(-np.inf, images.score_N[negative])[count_K]
    # A candidate has all negatives below it that it must have where it is above the last of these.
    return np.asarray(candidates[np.searchsorted(candidates, lowest_K, "right")])


def _number(values: NDArray[np.float64]) -> float | None:
    return None if np.isnan(values[0]) else float(values[0])
