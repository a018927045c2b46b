"""What a student is shown: views, labels and samplers, the same after a resume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.joining
from cache import CacheReader
from cache.errors import CacheMismatch
from data.scan import scan_data
from data.views import ViewPolicy, draw
from pipeline.targets import TeacherTargets
from pipeline.tasks import UNLABELLED
from pipeline.training.config import TrainConfig
from pipeline.training.lessons import EpochPlan, Lessons


@pytest.fixture(scope="module")
def targets(tiny_data: Path, tiny_cache: Path) -> TeacherTargets:
    """30 train images of 5 classes, 3 views each."""
    images = scan_data(tiny_data)
    groups = {"train": images.of_split("train")}
    return pipeline.joining.join(CacheReader(tiny_cache), groups, [str(tiny_data)], images.classes)["train"]


@pytest.fixture(scope="module")
def skewed(targets: TeacherTargets) -> TeacherTargets:
    """All six images of the first class, one of each other."""
    chosen = [i for i, label in enumerate(targets.labels_N) if label == 0 or i == list(targets.labels_N).index(label)]
    return targets.subset(np.array(chosen))


def lessons(targets: TeacherTargets, **settings: Any) -> Lessons:
    return Lessons(targets, TrainConfig(**{"batch_size": 8, **settings}))


def views_of(one: Lessons, plan: EpochPlan) -> np.ndarray:
    assert plan.rows_M is not None
    return np.asarray(one.targets.reader.view[plan.rows_M])


def drawn(plan: EpochPlan) -> list[tuple[bytes, bytes]]:
    """(sample, view) of each item, in the order of the epoch."""
    return [(item.sample.key, item.params.tobytes()) for batch in plan.batches for item in batch]


def test_an_epoch_shows_every_image_once_in_batches_of_nearly_equal_size(targets: TeacherTargets) -> None:
    plan = lessons(targets).epoch(0)
    assert sorted(Counter(key for key, _ in drawn(plan)).values()) == [1] * 30
    assert sorted(map(len, plan.batches)) == [7, 7, 8, 8]


def test_an_epoch_depends_on_seed_and_number_alone(targets: TeacherTargets) -> None:
    for settings in ({}, {"sampler": "balanced"}, {"fresh_views": True, "teacher": False}):
        one, other = lessons(targets, **settings), lessons(targets, **settings)
        one.epoch(0)
        assert drawn(one.epoch(3)) == drawn(other.epoch(3))
        assert drawn(one.epoch(3)) != drawn(one.epoch(4))
        assert drawn(one.epoch(3)) != drawn(lessons(targets, seed=1, **settings).epoch(3))


def test_a_draw_is_told_the_answer_to_the_very_view_it_shows(targets: TeacherTargets) -> None:
    for sampler in ("shuffle", "balanced"):
        one = lessons(targets, sampler=sampler)
        plan = one.epoch(1)
        for batch in plan.batches:
            draws = np.array([item.target for item in batch])
            said = one.told(plan, draws)
            assert said is not None
            for item, logits in zip(batch, said, strict=True):
                answers = targets.reader[item.sample.key]
                views = [draw(ViewPolicy(), item.sample.key, int(view), 0).tobytes() for view in answers.views]
                np.testing.assert_array_equal(answers.logits["class"][views.index(item.params.tobytes())], logits)


def test_fewer_views_are_the_first_ones(targets: TeacherTargets) -> None:
    one = lessons(targets, n_views=2)
    views = np.stack([views_of(one, one.epoch(epoch)) for epoch in range(2)])
    assert (np.sort(views, axis=0) == np.array([0, 1])[:, None]).all()
    assert one.mean_views == 2
    only = lessons(targets, n_views=1)
    assert (views_of(only, only.epoch(5)) == 0).all(), "one view is the clean one"


def test_more_views_than_there_are_is_refused_with_the_command_that_adds_them(targets: TeacherTargets) -> None:
    with pytest.raises(CacheMismatch, match=r"has 3 views of some train images, this run asks for 4.*--views 4"):
        lessons(targets, n_views=4)


def test_fresh_views_are_never_those_of_the_cache_and_never_come_again(targets: TeacherTargets) -> None:
    one = lessons(targets, teacher=False, fresh_views=True)
    epochs = [drawn(one.epoch(epoch)) for epoch in range(5)]
    shown = [view for views in epochs for view in views]
    assert len(set(shown)) == len(shown) == 5 * 30
    cached = {item.params.tobytes() for view in range(3) for item in targets.items(targets.epoch_rows(view, 0))}
    assert not cached & {params for _, params in shown}
    assert one.epoch(0).rows_M is None


def test_only_some_labels_are_used_and_the_other_images_keep_their_soft_targets(targets: TeacherTargets) -> None:
    one = lessons(targets, label_fraction=0.4)
    assert one.n_labelled == 12
    assert (one.labels_NT == UNLABELLED).sum() == 18
    assert len(one.samples) == 30
    said = one.told(one.epoch(0), np.arange(30))
    assert said is not None
    assert len(said) == 30


def test_without_a_teacher_images_without_a_label_are_left_out(targets: TeacherTargets) -> None:
    one = lessons(targets, label_fraction=0.4, teacher=False)
    assert len(one.samples) == one.n_labelled == 12
    assert one.told(one.epoch(0), np.arange(12)) is None
    taught = lessons(targets, label_fraction=0.4)
    labelled = {s.key for s, label in zip(taught.samples, taught.labels_NT[:, 0], strict=True) if label != UNLABELLED}
    assert {sample.key for sample in one.samples} == labelled, "the baseline has the labels of the distilled run"


def test_the_balanced_sampler_shows_each_class_equally_often(skewed: TeacherTargets) -> None:
    shares = {}
    for sampler in ("shuffle", "balanced"):
        one = lessons(skewed, sampler=sampler, batch_size=2)
        labels = np.concatenate([one.labels_NT[one.epoch(epoch).sample_M, 0] for epoch in range(200)])
        shares[sampler] = np.bincount(labels, minlength=5) / len(labels)
    np.testing.assert_allclose(shares["shuffle"], [0.6, 0.1, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(shares["balanced"], 0.2, atol=0.04)


def test_an_image_that_is_drawn_again_shows_its_next_view(skewed: TeacherTargets) -> None:
    one = lessons(skewed, sampler="balanced", batch_size=2)
    for epoch in range(0, 60, 3):  # where a cycle of three views begins
        plan = one.epoch(epoch)
        assert plan.rows_M is not None
        for sample in np.unique(plan.sample_M):
            rows = plan.rows_M[plan.sample_M == sample]
            assert len(set(rows[:3].tolist())) == min(3, len(rows))


def test_the_classes_are_counted_by_name(skewed: TeacherTargets) -> None:
    counts = lessons(skewed).class_counts()["class"]
    assert list(counts) == list(skewed.classes)
    assert list(counts.values()) == [6, 1, 1, 1, 1]
