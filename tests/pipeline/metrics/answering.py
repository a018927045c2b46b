"""Made-up answers for the tests of the scores."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.metrics.evaluation import Answers

Drawn = tuple[NDArray[np.float32], NDArray[np.int64]]


def drawn(seed: int, n_samples: int, n_classes: int, skill: float = 1.0) -> Drawn:
    """(logits [N, C], labels [N]) of somebody who is right more often than not; few distinct logits, so ties."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(n_classes, size=n_samples)
    logits = generator.normal(size=(n_samples, n_classes)).round(1) + skill * np.eye(n_classes)[labels]
    return logits.astype(np.float32), labels


some_answers = st.builds(drawn, st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 6), st.floats(0, 3))
"""From one sample on, so that classes are absent and alone."""


def answers(student: Drawn, teacher: NDArray[np.float32] | None = None, split: str = "test") -> Answers:
    """Answers of images called 0.jpg, 1.jpg, ... of which the student learned from none."""
    logits, labels = student
    n_samples = len(labels)
    return Answers(
        split=split, source="", names=tuple(f"{split}/c/{i}.jpg" for i in range(n_samples)),
        keys=tuple(i.to_bytes(16, "big") for i in range(n_samples)), labels_N=labels, student_NC=logits,
        teacher_NC=teacher, learned_N=np.zeros(n_samples, bool),
        teacher_seen_N=None if teacher is None else np.zeros(n_samples, bool),
    )  # fmt: skip
