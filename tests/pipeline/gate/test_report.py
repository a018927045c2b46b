"""What a teacher's answers are worth: on images it has not seen, counted by hand; and on which images it is decided."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.options import ScanOptions
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import TeacherError
from pipeline.gate.report import Confusion, reports_on, teacher_report, view_agreement
from pipeline.targets import TeacherTargets

Told = Callable[..., TeacherTargets]


def sure(predicted: list[int], n_classes: int = 3) -> np.ndarray:
    """Logits of a teacher that says these classes."""
    return np.eye(n_classes)[predicted] * 5


def test_images_that_the_teacher_was_fitted_on_take_no_part(told: Told) -> None:
    labels, said = [0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 1, 0]
    report = teacher_report(told(labels, sure(said), seen=[1, 1, 1, 0, 0, 0]), "val", None)
    assert (report.metrics.n_samples, report.n_seen_left_out, report.is_all_seen) == (3, 3, False)
    assert report.metrics.accuracy == pytest.approx(1 / 3)
    assert report.verdict.images == {"val": 3}


def test_where_all_images_were_seen_they_count_and_it_is_said(told: Told) -> None:
    report = teacher_report(told([0, 1, 2], sure([0, 1, 2]), seen=[1, 1, 1]), "val", None)
    assert (report.metrics.n_samples, report.n_seen_left_out, report.is_all_seen) == (3, 0, True)


def test_a_cache_that_does_not_say_what_was_seen_counts_whole(told: Told) -> None:
    report = teacher_report(told([0, 1, 2], sure([0, 1, 2])), "val", None)
    assert (report.metrics.n_samples, report.is_all_seen) == (3, False)


def test_few_validation_images_are_decided_on_together_with_unseen_train_images(told: Told) -> None:
    val = told([0, 1] * 10, sure([0, 1] * 10))
    train = told([0, 1, 2] * 20, sure([0, 1, 1] * 20), seen=[0] * 30 + [1] * 30, name="train.h5")
    verdict = teacher_report(val, "val", train).verdict
    assert verdict.images == {"val": 20, "train": 30}
    assert verdict.n_classes == 3
    assert verdict.balanced_accuracy == pytest.approx(2 / 3)
    assert verdict.adjusted == pytest.approx(0.5)
    enough = told([0, 1] * 50, sure([0, 1] * 50), name="enough.h5")
    assert teacher_report(enough, "val", train).verdict.images == {"val": 100}


def test_the_agreement_of_views_equals_the_hand_computed_one(told: Told) -> None:
    """Clean (log 3, 0) is (3/4, 1/4). The others: the same, halves that choose class 0, and (1/4, 3/4)."""
    one = [[math.log(3), 0], [math.log(3), 0], [0, 0], [0, math.log(3)]]
    found = view_agreement(told([0, 1], np.array(one * 2), views=4))
    assert found is not None
    assert (found.n_images, found.n_views) == (2, 6)
    assert found.clean.top1 == pytest.approx(2 / 3)
    to_halves = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    to_mirror = 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    assert found.clean.kl_nats == pytest.approx((0 + to_halves + to_mirror) / 3, rel=1e-6)


def test_images_with_one_view_have_no_agreement(told: Told) -> None:
    assert view_agreement(told([0, 1], sure([0, 1]))) is None


def test_the_most_frequent_confusions_come_first(told: Told) -> None:
    labels, said = [0] * 4 + [1] * 5 + [2] * 2, [0, 0, 1, 1, 1, 2, 2, 2, 0, 2, 2]
    assert teacher_report(told(labels, sure(said)), "val", None).confusions == (
        Confusion("class 1", "class 2", 3, 3 / 5),
        Confusion("class 0", "class 1", 2, 1 / 2),
        Confusion("class 1", "class 0", 1, 1 / 5),
    )


def test_images_of_a_single_class_decide_nothing(told: Told) -> None:
    verdict = teacher_report(told([1, 1, 1], sure([1, 1, 0])), "val", None).verdict
    assert (verdict.adjusted, verdict.p_value, verdict.is_near_chance) == (None, None, False)


def test_answers_that_are_no_numbers_are_an_error(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = told([0, 1], sure([0, 1]))
    monkeypatch.setattr(TeacherTargets, "teacher_logits", lambda self, rows: np.full((len(rows), 3), np.nan))
    with pytest.raises(TeacherError, match=r"2 of 2 answers of the teacher are infinite or undefined"):
        teacher_report(targets, "val", None)


@pytest.mark.parametrize("split", [None, "val", "test", "train"])
def test_any_split_of_the_data_is_reported_on(split: str | None, tiny_data: Path, tiny_cache: Path) -> None:
    report = reports_on(tiny_cache, tiny_data, split, ScanOptions())["class"]
    assert report.split == split or (split, report.split) == (None, "val")
    n_images = {"train": 30}.get(report.split, 15)
    assert report.metrics.n_samples == n_images
    assert report.verdict.images == {report.split: n_images} | {"train": 30}
    assert report.views is not None
    assert report.views.n_views == 60
    assert not report.verdict.is_near_chance
    described = report.to_dict()
    assert json.loads(json.dumps(described, allow_nan=False))["entropy_nats"].keys() == {"1", "2", "4", "8"}


def test_a_cache_without_the_train_images_is_reported_on_as_well(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images", ignore=shutil.ignore_patterns("train"))
    cache = build_cache(data, tmp_path / "t.h5", tiny_build).path
    report = reports_on(cache, tiny_data, None, ScanOptions())["class"]
    assert report.verdict.images == {"val": 15}
    assert report.views is None
