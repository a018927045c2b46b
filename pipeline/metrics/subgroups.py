"""Scores by subgroup: a column of a table says who an image is of, numbers are binned, what is missing is a row.

Never hides a small subgroup, and never scores one.
Run: softlabel evaluate RUN DATA --csv FILE --subgroup-column sex,age
N samples, C classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SettingError
from pipeline.metrics.bootstrap import N_RESAMPLES, Intervals, draw_resamples, headline_intervals, weighted_scores
from pipeline.metrics.classification import classification_metrics

MISSING = "(missing)"
MIN_IMAGES = 10
"""Fewer are counted, not scored: one image more or less would move the accuracy by over a tenth."""
_MAX_DISTINCT_NUMBERS, _MAX_VALUES, _MAX_DECADES = 12, 50, 12
_MISSING_WORDS = frozenset({"", "nan", "na", "n/a", "null"})
SCORES = ("accuracy", "balanced_accuracy", "macro_f1")


@dataclass(frozen=True)
class Subgroup:
    """The images with one value of one column."""

    column: str
    value: str
    """As in the table, "40 to <50" of a binned number, or "(missing)"."""
    n_images: int
    n_correct: int
    n_classes: int
    """Classes it has images of: averages over others are not comparable with its own."""
    is_small: bool
    """Fewer than 10 images: no scores."""
    accuracy: float | None
    balanced_accuracy: float | None
    macro_f1: float | None
    intervals: Intervals
    """Of the three scores; empty where there is none."""


def name_values(column: str, values: Sequence[str]) -> tuple[list[str], list[str]]:
    """(subgroup of each value, subgroups in order, "(missing)" last).

    More than 12 different numbers become decades, or quarters where there are too many or too few decades.
    SettingError where the values are so many that the column must be an id.
    """
    cleaned = [value.strip() for value in values]
    known = [value for value in cleaned if value.lower() not in _MISSING_WORDS]
    numbers = {value: _number(value) for value in set(known)}
    found = [number for number in numbers.values() if number is not None]
    if known and len(found) == len(numbers):
        if len(set(found)) > _MAX_DISTINCT_NUMBERS:
            edges = _edges([number for value in known if (number := numbers[value]) is not None])
            name_of = {value: _bin_name(edges, number) for value, number in numbers.items() if number is not None}
            order = [_bin_name(edges, low) for low in edges[:-1]]
        else:
            name_of = {value: value for value in numbers}
            order = sorted(numbers, key=lambda value: (numbers[value] or 0.0, value))
    else:
        name_of = {value: value for value in numbers}
        order = [value for value, _ in sorted(Counter(known).items(), key=lambda item: (-item[1], item[0]))]
    if len(order) > _MAX_VALUES:
        raise SettingError(
            f"column {column} has {len(order):,} different values, expected at most {_MAX_VALUES}: subgroups have "
            f"names that many images share; is it for --group-column?"
        )
    names = [name_of.get(value, MISSING) for value in cleaned]
    return names, [name for name in [*order, MISSING] if name in set(names)]


def subgroup_table(
    logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], classes: tuple[str, ...], column: str,
    names_N: Sequence[str], order: Sequence[str], groups_N: Sequence[str], *,
    n_resamples: int = N_RESAMPLES, seed: int = 0,
) -> tuple[Subgroup, ...]:  # fmt: skip
    """A Subgroup for each name that an image here has, in order; `groups_N` is what the bootstrap draws."""
    table = []
    for name in order:
        chosen = np.flatnonzero([other == name for other in names_N])
        if not len(chosen):
            continue
        logits, labels = logits_NC[chosen], labels_N[chosen]
        scores, intervals = dict[str, float | None](dict.fromkeys(SCORES)), Intervals()
        if len(chosen) >= MIN_IMAGES:
            metrics = classification_metrics(logits, labels, classes)
            scores = {score: getattr(metrics, score) for score in SCORES}
            resamples = draw_resamples([groups_N[i] for i in chosen.tolist()], n_resamples=n_resamples, seed=seed)
            if resamples is not None:
                found = headline_intervals(resamples.scores(weighted_scores(logits, labels, auroc=False)))
                intervals = {score: found[score] for score in SCORES}
        table.append(
            Subgroup(
                column=column, value=name, n_images=len(chosen), n_correct=int((logits.argmax(axis=1) == labels).sum()),
                n_classes=len(np.unique(labels)), is_small=len(chosen) < MIN_IMAGES, intervals=intervals, **scores,
            )
        )  # fmt: skip
    return tuple(table)


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _edges(numbers: Sequence[float]) -> list[float]:
    """Bin edges, the last one above all: decades where these make 3 to 12 bins, else quarters."""
    low, high = math.floor(min(numbers) / 10) * 10, math.floor(max(numbers) / 10) * 10 + 10
    if 3 <= (high - low) // 10 <= _MAX_DECADES:
        return [float(edge) for edge in range(low, high + 1, 10)]
    quarters = np.unique(np.quantile(numbers, (0, 0.25, 0.5, 0.75), method="lower"))
    return [*quarters.tolist(), math.inf]


def _bin_name(edges: Sequence[float], number: float) -> str:
    at = int(np.searchsorted(edges, number, "right")) - 1
    low, high = edges[at], edges[at + 1]
    return f"{low:g} and more" if high == math.inf else f"{low:g} to <{high:g}"
