"""How sure a teacher is: calibration, entropy at a temperature, and the temperatures worth trying.

Knows raw logits only. N samples, C classes. Run: softlabel cache info t.h5 --data DATA
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

ENTROPY_BAND = (0.3, 0.8)
"""Shares of log C between which soft targets say something that labels do not, and still tell classes apart."""
_T_LIMITS = (1e-3, 1e4)


def expected_calibration_error(logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], n_bins: int = 15) -> float:
    """Mean |accuracy - confidence| over equal-width bins, weighted by images; float in [0, 1].

    Confidence is the largest probability at T = 1. Bin m holds ((m - 1) / M, m / M] (Guo et al. 2017, eq. 3).
    """
    confidence_N = confidence(logits_NC)
    correct_N = logits_NC.argmax(axis=1) == labels_N
    bin_N = np.ceil(confidence_N * n_bins).astype(np.int64).clip(1, n_bins) - 1
    surplus = np.bincount(bin_N, weights=correct_N - confidence_N, minlength=n_bins)
    return float(np.abs(surplus).sum() / len(labels_N))


def confidence(logits_NC: NDArray[np.floating]) -> NDArray[np.float64]:
    """The largest probability of each row at T = 1, float64 [N]."""
    with np.errstate(over="ignore"):  # -inf below the largest is as improbable as it should be
        below_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    return np.asarray(1 / np.exp(below_NC).sum(axis=1, dtype=np.float64))


def mean_entropy(logits_NC: NDArray[np.floating], temperature: float) -> float:
    """Mean entropy of softmax(logits / T) in nats, in 0..log C."""
    from scipy.special import log_softmax

    log_p = log_softmax(logits_NC.astype(np.float64) / temperature, axis=1)
    return max(0.0, float(-(np.exp(log_p) * log_p).sum(axis=1).mean()))  # people read -0.00 as a mistake


def temperature_range(logits_NC: NDArray[np.floating]) -> tuple[float, float] | None:
    """The T's between which the mean entropy lies in ENTROPY_BAND of log C, one digit each; None where no T does that.

    Below the band nearly all of the probability is on one class, and the soft target repeats a label. Above it the
    target is nearly uniform: its gradient tends to that of matching centred logits (Hinton et al. 2015, eq. 4), in
    which the noise of the improbable classes weighs as much as the likely ones. The band is a rule of thumb, not an
    optimum, so the ends are rounded. Entropy rises with T (d H / d (1 / T) = -Var(logits) / T <= 0), so that each end
    is one root.
    """
    from scipy.optimize import brentq

    most = math.log(logits_NC.shape[1])

    def surplus(log_t: float, share: float) -> float:
        return mean_entropy(logits_NC, math.exp(log_t)) / most - share

    lowest, highest = map(math.log, _T_LIMITS)
    if surplus(lowest, ENTROPY_BAND[0]) >= 0 or surplus(highest, ENTROPY_BAND[1]) <= 0:
        return None
    low, high = (math.exp(brentq(surplus, lowest, highest, args=(share,), xtol=1e-2)) for share in ENTROPY_BAND)
    return float(f"{low:.1g}"), float(f"{high:.1g}")
