"""Every score of a finished classifier on images with labels: what `classification_metrics` has, and what needs more.

Never called while training: an AUROC of each class is dear there. Run: softlabel evaluate RUN DATA
N samples, C classes.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.calibration import CalibrationBin, calibration, expected_calibration_error
from pipeline.metrics.classification import Metrics, classification_metrics

HEADLINE = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1",
    "macro_auroc": "macro AUROC", "calibration_error": "calibration error", "nll_nats": "log loss (nats)",
}  # fmt: skip
"""Field of FullMetrics -> what people call it. Of the last two, less is better."""
PER_CLASS = ("precision", "recall", "f1", "auroc")


@dataclass(frozen=True)
class FullMetrics(Metrics):
    """As Metrics, with "auroc" in the per-class table: one-vs-rest, None where a class is absent or alone."""

    macro_auroc: float | None
    """Mean over the classes that have one."""
    calibration_error: float
    """Expected calibration error, 15 equal-width bins of top-1 confidence (Guo et al. 2017); in [0, 1]."""
    nll_nats: float
    """Mean negative log-likelihood of the true class, log C for a uniform answer."""
    calibration: tuple[CalibrationBin, ...]
    """Of which a reliability diagram is drawn."""

    def headline(self) -> dict[str, float | None]:
        """The scores of HEADLINE, in its order."""
        return {name: getattr(self, name) for name in HEADLINE}


def full_metrics(logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], classes: tuple[str, ...]) -> FullMetrics:
    """All scores of raw logits; N >= 1, labels in 0..C-1."""
    quick = classification_metrics(logits_NC, labels_N, classes)
    probabilities_NC = probabilities(logits_NC)
    auroc_of = {name: auroc(probabilities_NC[:, i], labels_N == i) for i, name in enumerate(classes)}
    known = [value for value in auroc_of.values() if value is not None]
    kept = {field.name: getattr(quick, field.name) for field in fields(Metrics)}
    kept["per_class"] = {name: {**scores, "auroc": auroc_of[name]} for name, scores in quick.per_class.items()}
    return FullMetrics(
        **kept,
        macro_auroc=statistics.fmean(known) if known else None,
        calibration_error=expected_calibration_error(logits_NC, labels_N),
        nll_nats=negative_log_likelihood(logits_NC, labels_N),
        calibration=calibration(logits_NC, labels_N),
    )


def probabilities(logits_NC: NDArray[np.floating]) -> NDArray[np.float64]:
    """Softmax of each row at T = 1, float64 [N, C]."""
    from scipy.special import softmax

    return np.asarray(softmax(logits_NC.astype(np.float64), axis=1))


def negative_log_likelihood(logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64]) -> float:
    """Mean of -log p(true class) in nats: the cross-entropy of the labels."""
    return float(sample_nll(logits_NC, labels_N).mean())


def sample_nll(logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """-log p(true class) of each sample in nats, float64 [N]."""
    from scipy.special import log_softmax

    return np.asarray(-log_softmax(logits_NC.astype(np.float64), axis=1)[np.arange(len(labels_N)), labels_N])


def auroc(score_N: NDArray[np.floating], is_positive_N: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve, in [0, 1]; None without positives or without negatives."""
    from sklearn.metrics import roc_auc_score

    if is_positive_N.all() or not is_positive_N.any():
        return None
    return float(roc_auc_score(is_positive_N, score_N))
