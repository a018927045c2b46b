"""One temperature for a head, such that its probabilities are as sure as they are right. Knows no cache.

Run: softlabel cache probe t.h5 DATA -o probe.h5 --calibrate
N samples, C classes.
"""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

# A head beyond a factor of a thousand is not badly calibrated but broken, or its answers are all right.
_LOG_BOUNDS = (math.log(1e-3), math.log(1e3))


def nll_nats(logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Mean negative log-likelihood of softmax(logits / T), in nats; a logit may be -inf where it is not the label's."""
    from scipy.special import log_softmax

    log_p = log_softmax(logits_NC.astype(np.float64) / temperature, axis=1)
    return float(-log_p[np.arange(len(labels_N)), labels_N].mean())


def fit_temperature(logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64]) -> float:
    """The T in [0.001, 1000] of least NLL (Guo et al. 2017, sec. 4.2), found over log T; 1 where no T is better."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log_t: nll_nats(logits_NC, labels_N, math.exp(log_t)),
        bounds=_LOG_BOUNDS, method="bounded", options={"xatol": 1e-6},
    )  # fmt: skip
    temperature = math.exp(found.x)
    return temperature if nll_nats(logits_NC, labels_N, temperature) < nll_nats(logits_NC, labels_N) else 1.0


def tell_temperature(
    temperature: float, logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], images: str
) -> None:
    """Log what a temperature did to the images that it was fitted on; a warning where nothing but flatness helps."""
    before, after = nll_nats(logits_NC, labels_N), nll_nats(logits_NC, labels_N, temperature)
    log.info(
        "temperature %.4g on %s %s images: NLL %.4f -> %.4f nats",
        temperature,
        f"{len(labels_N):,}",
        images,
        before,
        after,
    )
    if after > 0.99 * math.log(logits_NC.shape[1]):
        log.warning(
            "these logits say nothing of the classes: at best they are as good as none (%.4f nats)",
            math.log(logits_NC.shape[1]),
        )
