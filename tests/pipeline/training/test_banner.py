"""The lines before the first step: budget, capacity, images, device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.students.budget import Artefact
from pipeline.targets import TeacherTargets
from pipeline.training import lessons
from pipeline.training.banner import banner
from pipeline.training.config import TrainConfig
from pipeline.training.process_settings import ProcessSettings

Told = Callable[..., TeacherTargets]


PROCESS = ProcessSettings(
    device="cpu", precision="fp32", threads=2, n_timed=8, timed_ms={1: 19.4, 2: 12.2}, layout=torch.channels_last,
    fused=True, allocator=True,
)  # fmt: skip


@pytest.fixture
def say(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The banner of a run on five images of two classes, three of the first."""
    monkeypatch.setattr(lessons, "view_policy", lambda reader: None)

    def say(*, teacher_parameters: Any = None, **settings: Any) -> list[str]:
        targets = told([0, 0, 0, 1, 1], np.zeros((5, 2)), name=f"{len(list(tmp_path.iterdir()))}.h5")
        if teacher_parameters is not None:
            targets.reader.manifest.provenance["teacher_parameters"] = teacher_parameters
        config = TrainConfig(student_size_px=64, **settings)
        return list(
            banner(
                lessons.Lessons(targets, config), 7, "split val", config, n_parameters=350_000,
                artefact=Artefact(1_600_000, is_exact=teacher_parameters is None), process=PROCESS, workers=2,
            )
        )  # fmt: skip

    return say


def test_the_banner_says_what_is_trained_on_what(say: Callable[..., list[str]]) -> None:
    student, images, classes, where = say(budget_mb=3.2, student="resnet18", batch_size=64)
    assert student == "student  resnet18 at 64 px: 0.35 M parameters, 1.6 MB exported (50% of the budget of 3.2 MB)"
    assert images == "images   5 train, 7 val (split val); 1 cached view each, 2 classes"
    assert classes == "classes  class 0 3, class 1 2"
    assert where == f"runs on  {PROCESS.line()}; batches of 64, 2 loader processes"


def test_fresh_views_and_missing_labels_are_said(say: Callable[..., list[str]]) -> None:
    assert "; fresh views, " in say(fresh_views=True, teacher=False)[1]
    assert "5 train (2 with a label)" in say(label_fraction=0.4)[1]


@pytest.mark.parametrize(("teacher_parameters", "is_gap"), [(34_000_000, False), (400_000_000, True)])
def test_a_student_far_below_its_teacher_is_a_known_gap(
    teacher_parameters: int, is_gap: bool, say: Callable[..., list[str]]
) -> None:
    student, line, *_ = say(teacher_parameters=teacher_parameters)
    assert "at most 1.6 MB exported" in student
    assert line.startswith(f"capacity {350_000 / teacher_parameters:.2g} of the teacher's parameters")
    assert ("known gap: a teacher assistant may help" in line) == is_gap
    assert not any(line.startswith("capacity") for line in say(teacher_parameters=teacher_parameters, teacher=False)), (
        "without a teacher there is none to be compared with"
    )
