"""How far confidence is from being right: expected calibration error, and the bins of a reliability diagram.

Knows raw logits and labels only. Run: softlabel evaluate RUN DATA
N samples, C classes, M bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_BINS = 15
"""As in Guo et al. 2017."""


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose top-1 confidence lies in (low, high]."""

    low: float
    high: float
    n_images: int
    confidence: float | None
    """Mean of the largest probability, in [0, 1]; None of an empty bin."""
    accuracy: float | None


def calibration(
    logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], n_bins: int = N_BINS
) -> tuple[CalibrationBin, ...]:
    """The equal-width bins of top-1 confidence at T = 1, of which a reliability diagram is drawn."""
    confidence_N, correct_N = confidence(logits_NC), logits_NC.argmax(axis=1) == labels_N
    bin_N = bins_of(confidence_N, n_bins)
    count, sure, right = (
        np.bincount(bin_N, weights=w, minlength=n_bins).tolist() for w in (None, confidence_N, correct_N)
    )
    return tuple(
        CalibrationBin(m / n_bins, (m + 1) / n_bins, n, sure[m] / n if n else None, right[m] / n if n else None)
        for m, n in enumerate(count)
    )


def expected_calibration_error(
    logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], n_bins: int = N_BINS
) -> float:
    """Mean |accuracy - confidence| over equal-width bins, weighted by images; float in [0, 1].

    Confidence is the largest probability at T = 1. Bin m holds ((m - 1) / M, m / M] (Guo et al. 2017, eq. 3).
    """
    confidence_N = confidence(logits_NC)
    correct_N = logits_NC.argmax(axis=1) == labels_N
    surplus = np.bincount(bins_of(confidence_N, n_bins), weights=correct_N - confidence_N, minlength=n_bins)
    return float(np.abs(surplus).sum() / len(labels_N))


def bins_of(confidence_N: NDArray[np.floating], n_bins: int = N_BINS) -> NDArray[np.int64]:
    """The bin of each confidence, int64 [N] in 0..M-1."""
    return np.ceil(confidence_N * n_bins).astype(np.int64).clip(1, n_bins) - 1


def confidence(logits_NC: NDArray[np.floating]) -> NDArray[np.float64]:
    """The largest probability of each row at T = 1, float64 [N]."""
    with np.errstate(over="ignore"):  # -inf below the largest is as improbable as it should be
        below_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    return np.asarray(1 / np.exp(below_NC).sum(axis=1, dtype=np.float64))
