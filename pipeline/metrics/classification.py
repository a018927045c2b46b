"""Classification metrics of one task, counted from its confusion matrix. N samples, C classes.

By NumPy, with the numbers of scikit-learn (a test compares them), whose import is half a second of each start.

Averages run over the classes that have samples; a class without any is None in the per-class table, never a silent 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Metrics:
    """All shares are in [0, 1]."""

    n_samples: int
    accuracy: float
    balanced_accuracy: float
    """Mean recall over the classes that have samples."""
    macro_f1: float
    """Mean F1 over the classes that have samples."""
    majority_share: float
    """What always answering the most frequent class would score as accuracy."""
    per_class: dict[str, dict[str, float | None]]
    """Class name -> precision, recall, f1, support."""
    confusion: list[list[int]]
    """Rows are true classes, columns predicted ones, in class order."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def classification_metrics(
    logits_NC: NDArray[np.floating], labels_N: NDArray[np.int64], classes: tuple[str, ...]
) -> Metrics:
    """Metrics of the arg-max prediction; N >= 1, labels in 0..C-1."""
    predicted, n_classes = logits_NC.argmax(axis=1), len(classes)
    counts = np.bincount(labels_N * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)
    right, said, support = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    present = support > 0
    recall = right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(said + support, 1)
    columns = {"precision": right / np.maximum(said, 1), "recall": recall, "f1": f1}
    per_class = {
        name: {
            **{column: float(values[i]) if present[i] else None for column, values in columns.items()},
            "support": int(support[i]),
        }
        for i, name in enumerate(classes)
    }
    return Metrics(
        n_samples=len(labels_N),
        accuracy=float((predicted == labels_N).mean()),
        balanced_accuracy=float(recall[present].mean()),
        macro_f1=float(f1[present].mean()),
        majority_share=float(support.max() / support.sum()),
        per_class=per_class,
        confusion=counts.tolist(),
    )


@dataclass(frozen=True)
class Agreement:
    """How far a student follows its teacher on the same images."""

    top1: float
    """Share of images on which both choose the same class."""
    kl_nats: float
    """Mean KL(teacher || student) at temperature 1."""


def agreement(student_NC: NDArray[np.floating], teacher_NC: NDArray[np.floating]) -> Agreement:
    """Agreement of two sets of raw logits over the same images and classes."""
    from scipy.special import log_softmax

    student, teacher = (log_softmax(logits.astype(np.float64), axis=1) for logits in (student_NC, teacher_NC))
    kl = (np.exp(teacher) * (teacher - student)).sum(axis=1).mean()
    return Agreement(float((student_NC.argmax(1) == teacher_NC.argmax(1)).mean()), float(kl))
