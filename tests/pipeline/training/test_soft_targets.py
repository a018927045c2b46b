"""Soft targets from memory are those from the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.targets import TeacherTargets
from pipeline.training import soft_targets
from pipeline.training.soft_targets import SoftTargets

Told = Callable[..., TeacherTargets]


@pytest.fixture
def targets(told: Told) -> TeacherTargets:
    """Five samples of three views."""
    return told([0, 0, 1, 1, 2], np.random.default_rng(0).standard_normal((15, 3)), views=3)


@pytest.mark.parametrize("target", ["view", "mean"])
@pytest.mark.parametrize("kept_bytes", [0, 180])
def test_they_are_the_same_in_memory_and_from_the_file(
    target: str, kept_bytes: int, targets: TeacherTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_targets, "_KEPT_BYTES", kept_bytes)
    rows = np.array([14, 0, 3, 3, 7])
    soft = SoftTargets(targets, target)
    expected = targets.mean_logits(rows) if target == "mean" else targets.teacher_logits(rows)
    for _ in range(2):
        found = soft(rows)
        assert found.dtype == np.float32
        assert found.tobytes() == expected.tobytes()


def test_what_fits_into_memory_is_read_once(targets: TeacherTargets, monkeypatch: pytest.MonkeyPatch) -> None:
    soft = SoftTargets(targets, "view")
    first = soft(np.arange(3))
    monkeypatch.setattr(TeacherTargets, "teacher_logits", lambda *arguments: pytest.fail("read again"))
    assert np.array_equal(soft(np.arange(3)), first)
