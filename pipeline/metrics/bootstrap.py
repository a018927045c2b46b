"""95 % intervals of scores by bootstrap over groups: whole patients or lesions are drawn, never single images of one.

Percentile intervals (Efron & Tibshirani 1993, ch. 13) with the cluster as the unit (Field & Welsh 2007). They tell what
other images would have scored under this very student, not what another training run would: `train --seeds` does.
Where all images of a class are right, or all wrong, the interval has no width and says nothing; images that are drawn
twice make a calibration error look larger, so that its interval lies high.
All resamples are computed at once from integer weights. N samples, C classes, K resamples, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SettingError
from pipeline.metrics.calibration import N_BINS, bins_of, confidence
from pipeline.metrics.full import HEADLINE, PER_CLASS, probabilities, sample_nll

N_RESAMPLES = 1000
LEVEL = 0.95
"""Share of the resamples that an interval holds."""
_MAX_WEIGHTS = 4_000_000
"""Computed with at a time: 32 MB."""
Scores = dict[str, NDArray[np.float64]]
"""Name -> values, [K] of a headline score, [C, K] of a per-class one; NaN where a resample has no such score."""


@dataclass(frozen=True)
class Interval:
    """What 95 % of the resamples lie between, or another share where that is said."""

    low: float
    high: float


Intervals = dict[str, "Interval | None"]


@dataclass(frozen=True)
class Resamples:
    """How often each sample counts in each resample of the groups it stands in."""

    group_N: NDArray[np.int64]
    """Number of each sample's group, 0..G-1."""
    weights_GK: NDArray[np.uint16]
    """How often each group was drawn."""

    @property
    def n_groups(self) -> int:
        """How many groups there are."""
        return len(self.weights_GK)

    def scores(self, statistic: Callable[[NDArray[np.float64]], Scores]) -> Scores:
        """A statistic of weights [N, K] in all resamples, a bounded number of them at a time."""
        n_resamples = self.weights_GK.shape[1]
        step = max(1, _MAX_WEIGHTS // len(self.group_N))
        parts = [
            statistic(self.weights_GK[self.group_N, start : start + step].astype(np.float64))
            for start in range(0, n_resamples, step)
        ]
        return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}


def draw_resamples(groups: Sequence[str], *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Resamples | None:
    """Resamples of G groups with replacement, as many in each as there are; None for fewer than two groups.

    Depends on the names of the groups, not on the order of the samples.
    """
    if n_resamples < 2:
        raise SettingError(f"n_resamples must be at least 2, got {n_resamples}")
    names, group_N = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    n_groups = len(names)
    if n_groups < 2:
        return None
    generator = np.random.default_rng(seed)
    weights_GK = np.empty((n_groups, n_resamples), np.uint16)
    for k in range(n_resamples):
        weights_GK[:, k] = np.bincount(generator.integers(n_groups, size=n_groups), minlength=n_groups)
    return Resamples(group_N.astype(np.int64), weights_GK)


def weighted_scores(
    logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], *, auroc: bool = True
) -> Callable[[NDArray[np.float64]], Scores]:
    """The scores of HEADLINE and PER_CLASS as a function of weights [N, K]; without AUROC it is ten times as fast."""
    n_samples, n_classes = logits_NC.shape
    predicted_N, confidence_N = logits_NC.argmax(axis=1), confidence(logits_NC)
    correct_N = predicted_N == labels_N
    is_label_CN, is_predicted_CN = (np.eye(n_classes)[:, column] for column in (labels_N, predicted_N))
    surplus_MN = np.zeros((N_BINS, n_samples))
    surplus_MN[bins_of(confidence_N), np.arange(n_samples)] = correct_N - confidence_N
    nll_N, probabilities_NC = sample_nll(logits_NC, labels_N), probabilities(logits_NC)

    def scores(weights_NK: NDArray[np.float64]) -> Scores:
        total_K = weights_NK.sum(axis=0)
        hits_CK = (is_label_CN * correct_N) @ weights_NK
        support_CK, said_CK = is_label_CN @ weights_NK, is_predicted_CN @ weights_NK
        present_CK = support_CK > 0
        found = {
            "precision": np.where(present_CK, _ratio(hits_CK, said_CK, 0.0), np.nan),
            "recall": _ratio(hits_CK, support_CK, np.nan),
            "f1": np.where(present_CK, _ratio(2 * hits_CK, support_CK + said_CK, 0.0), np.nan),
            "accuracy": _ratio(correct_N @ weights_NK, total_K, np.nan),
            "calibration_error": _ratio(np.abs(surplus_MN @ weights_NK).sum(axis=0), total_K, np.nan),
            "nll_nats": _ratio(nll_N @ weights_NK, total_K, np.nan),
        }
        found |= {"balanced_accuracy": _mean(found["recall"]), "macro_f1": _mean(found["f1"])}
        if auroc:
            columns = [weighted_auroc(probabilities_NC[:, c], labels_N == c, weights_NK) for c in range(n_classes)]
            found["auroc"] = np.stack(columns)
            found["macro_auroc"] = _mean(found["auroc"])
        return found

    return scores


def weighted_auroc(
    score_N: NDArray[np.floating], is_positive_N: NDArray[np.bool_], weights_NK: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The AUROC under each column of weights, float64 [K]: share of pairs in order, ties half; NaN without pairs."""
    positive, negative = np.flatnonzero(is_positive_N), np.flatnonzero(~is_positive_N)
    negative = negative[np.argsort(score_N[negative], kind="stable")]
    below = np.zeros((len(negative) + 1, weights_NK.shape[1]))
    np.cumsum(weights_NK[negative], axis=0, out=below[1:])
    first, last = (np.searchsorted(score_N[negative], score_N[positive], side) for side in ("left", "right"))
    weights_PK = weights_NK[positive]
    in_order_K = (weights_PK * (below[first] + below[last])).sum(axis=0) / 2
    return _ratio(in_order_K, weights_PK.sum(axis=0) * below[-1], np.nan)


def interval(values_K: NDArray[np.floating], level: float = LEVEL) -> Interval | None:
    """The percentile interval that holds this share of the resamples that have a value; None where none has."""
    known = values_K[np.isfinite(values_K)]
    if not len(known):
        return None
    low, high = np.percentile(known, [50 - 50 * level, 50 + 50 * level]).tolist()
    return Interval(low, high)


def headline_intervals(scores: Scores) -> Intervals:
    """The interval of each headline score that there is."""
    return {name: interval(scores[name]) for name in HEADLINE if name in scores}


def class_intervals(scores: Scores, classes: Sequence[str]) -> dict[str, Intervals]:
    """Class name -> the intervals of its scores."""
    return {name: {score: interval(scores[score][c]) for score in PER_CLASS} for c, name in enumerate(classes)}


def difference_intervals(
    mine: Mapping[str, NDArray[np.float64]], theirs: Mapping[str, NDArray[np.float64]]
) -> Intervals:
    """The interval of each headline score's difference, mine - theirs, in the same resamples (paired)."""
    return {name: interval(mine[name] - theirs[name]) for name in HEADLINE if name in mine}


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64], otherwise: float) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, otherwise), where=whole > 0)


def _mean(values_CK: NDArray[np.float64]) -> NDArray[np.float64]:
    known_CK = ~np.isnan(values_CK)
    return _ratio(np.where(known_CK, values_CK, 0.0).sum(axis=0), known_CK.sum(axis=0), np.nan)
