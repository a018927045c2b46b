"""A report's content made of arrays: a run of 100 epochs, four classes with names that strangers might choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.metrics.evaluation import Answers
from pipeline.report.content import ReportContent
from pipeline.report.page import render_report
from pipeline.tasks import Tasks
from pipeline.training.verdicts import Verdict

HOSTILE = ("<script>alert('x')</script>", '"><img src=x onerror=y>', "$\\frac{1$ & co", "湿疹 \x1b[31m")
COLUMNS = (
    "lr", "loss", "loss_hard", "loss_soft", "train_accuracy", "train_agreement", "val_accuracy",
    "val_balanced_accuracy", "val_macro_f1", "val_loss", "val_agreement", "val_kl", "images_per_s", "wall_s",
)  # fmt: skip
JPEG = b"\xff\xd8\xff\xe0 a picture"


def epochs(n: int, **columns: float | None) -> list[dict[str, Any]]:
    """Rows of metrics.csv: every column rises from 0 towards 0.9, but for those that are given."""
    rise = 0.9 * np.arange(1, n + 1) / n
    return [{"epoch": e + 1, "temperature": 4.0, **dict.fromkeys(COLUMNS, float(rise[e])), **columns} for e in range(n)]


def one_epoch() -> list[dict[str, Any]]:
    """Rows with a single curve, for tests that are not about curves: each takes a fifth of a second to draw."""
    kept = ("loss_hard", "val_accuracy", "val_balanced_accuracy", "val_macro_f1")
    return epochs(1, **{name: None for name in COLUMNS if name not in kept})


def answers_of(labels: list[int], student: np.ndarray, teacher: np.ndarray | None, split: str = "val") -> Answers:
    """Answers about images whose keys are 00.., 01.., and so on."""
    n = len(labels)
    return Answers(
        split=split,
        source="",
        names=tuple(f"patient-{i}/secret-name.jpg" for i in range(n)),
        keys=tuple(bytes([i]) * 16 for i in range(n)),
        labels_N=np.array(labels),
        student_NC=np.asarray(student, np.float32),
        teacher_NC=None if teacher is None else np.asarray(teacher, np.float32),
        learned_N=np.zeros(n, bool),
        teacher_seen_N=None if teacher is None else np.zeros(n, bool),
    )


@pytest.fixture(scope="session")
def content_of() -> Callable[..., ReportContent]:
    """The content, with some of it replaced; `classes` are those of its one task, and so are `answers`."""

    def content_of(**changes: Any) -> ReportContent:
        if isinstance(changes.get("answers"), Answers):
            changes["answers"] = {"class": changes["answers"]}
        if "classes" in changes:
            changes["tasks"] = Tasks({"class": changes.pop("classes")})
        generator, labels = np.random.default_rng(0), [0, 1, 2, 3] * 10
        truth = np.eye(4)[labels] * 2
        student, teacher = (truth + generator.normal(size=(40, 4)) for _ in range(2))
        settings = {
            "student": "shufflenet_v2_x0_5", "student_size_px": 64, "epochs": 100, "temperature": 4.0, "alpha": 0.3,
            "lr_peak": 0.001, "teacher": True, "init": "/home/somebody/weights.pt", "cache": "/home/somebody/t.h5",
        }  # fmt: skip
        given: dict[str, Any] = {
            "name": "run-7", "rows": epochs(100), "settings": settings, "tasks": Tasks({"class": HOSTILE}),
            "teacher": "a teacher",
            "verdicts": [Verdict("still-improving", "it rose by 0.1; try --epochs 80 [docs/troubleshooting.md#still]")],
            "ids": {"cache_id": "ab" * 32}, "n_parameters": 351_000, "exported_bytes": 1_600_000,
            "answers": {"class": answers_of(labels, student, teacher)},
        }  # fmt: skip
        return ReportContent(**{**given, **changes})

    return content_of


@pytest.fixture(scope="session")
def page(content_of: Callable[..., ReportContent]) -> str:
    """The page of that content."""
    return render_report(content_of())
