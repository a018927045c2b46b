"""How sure a teacher is: entropy at a temperature, and the temperatures worth trying.

Knows raw logits only. N samples, C classes. Run: softlabel cache info t.h5 --data DATA
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

ENTROPY_BAND = (0.3, 0.8)
"""Shares of log C between which soft targets say something that labels do not, and still tell classes apart."""
_T_LIMITS = (1e-3, 1e4)


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
