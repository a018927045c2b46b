"""The bootstrap: its statistics are scikit-learn's under weights, and its unit is the group."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

from pipeline.errors import SettingError
from pipeline.metrics import bootstrap
from pipeline.metrics.bootstrap import Interval, Scores, class_intervals, draw_resamples, headline_intervals, interval
from pipeline.metrics.full import HEADLINE, PER_CLASS, full_metrics, probabilities

from .answering import Drawn, drawn, some_answers


def resampled(one: Drawn, groups: list[str] | None = None, **options: int) -> Scores:
    resamples = draw_resamples(groups or [str(i) for i in range(len(one[1]))], **options)
    assert resamples is not None
    return resamples.scores(bootstrap.weighted_scores(*one))


@given(some_answers)
@settings(max_examples=25, deadline=None)
def test_with_every_image_once_the_scores_are_the_point_estimates(one: Drawn) -> None:
    logits, labels = one
    classes = tuple(map(str, range(logits.shape[1])))
    found = bootstrap.weighted_scores(logits, labels)(np.ones((len(labels), 1)))
    point = full_metrics(logits, labels, classes)
    for name, expected in point.headline().items():
        assert found[name][0] == pytest.approx(np.nan if expected is None else expected, nan_ok=True), name
    for c, scores in enumerate(point.per_class.values()):
        for name in PER_CLASS:
            expected = scores[name]
            assert found[name][c, 0] == pytest.approx(np.nan if expected is None else expected, nan_ok=True), name


@given(some_answers, st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_a_weight_counts_an_image_as_often_as_scikit_learn_does(one: Drawn, seed: int) -> None:
    logits, labels = one
    weights = np.random.default_rng(seed).integers(0, 4, len(labels))
    if not weights.any():
        return
    found = bootstrap.weighted_scores(logits, labels)(weights[:, None].astype(float))
    predicted = logits.argmax(axis=1)
    assert found["accuracy"][0] == pytest.approx(accuracy_score(labels, predicted, sample_weight=weights))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=range(logits.shape[1]), sample_weight=weights, zero_division=0.0
    )
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert found[name][support > 0, 0] == pytest.approx(expected[support > 0])
        assert np.isnan(found[name][support == 0, 0]).all()
    assert found["balanced_accuracy"][0] == pytest.approx(recall[support > 0].mean())
    assert found["macro_f1"][0] == pytest.approx(f1[support > 0].mean())
    for c in range(logits.shape[1]):
        is_c, counts = labels == c, weights > 0
        if 0 < is_c[counts].sum() < counts.sum():
            expected = roc_auc_score(is_c, probabilities(logits)[:, c], sample_weight=weights)
            assert found["auroc"][c, 0] == pytest.approx(expected)
        else:
            assert np.isnan(found["auroc"][c, 0])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_images_is_nothing_to_an_interval(seed: int) -> None:
    logits, labels = one = drawn(seed, 40, 3)
    groups = [f"lesion {i % 17}" for i in range(40)]
    order = np.random.default_rng(seed).permutation(40)
    shuffled = resampled((logits[order], labels[order]), [groups[i] for i in order], n_resamples=60)
    for name, values in resampled(one, groups, n_resamples=60).items():
        assert shuffled[name] == pytest.approx(values, nan_ok=True), name


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_groups_that_are_all_alike_leave_nothing_to_chance(seed: int, n_groups: int) -> None:
    logits, labels = drawn(seed, 12, 3)
    groups = [f"patient {g}" for g in range(n_groups) for _ in labels]
    found = resampled((np.tile(logits, (n_groups, 1)), np.tile(labels, n_groups)), groups, n_resamples=50)
    for name, one in headline_intervals(found).items():
        if one is not None:
            assert one.high - one.low == pytest.approx(0, abs=1e-9), name


@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_an_accuracy_and_its_interval_lie_between_the_worst_and_the_best_group(seed: int, n_groups: int) -> None:
    logits, labels = one = drawn(seed, 36, 3)
    groups = [i % n_groups for i in range(36)]
    right = logits.argmax(axis=1) == labels
    of_group = [right[np.array(groups) == g].mean() for g in range(n_groups)]
    found = interval(resampled(one, [str(g) for g in groups], n_resamples=100)["accuracy"])
    assert found is not None
    for value in (found.low, found.high, right.mean()):
        assert min(of_group) - 1e-9 <= value <= max(of_group) + 1e-9


def test_the_interval_of_independent_images_is_the_normal_one() -> None:
    """Half of 400 right: 1.96 sqrt(0.25 / 400) = 0.049 on either side."""
    labels = np.zeros(400, np.int64)
    logits = np.eye(2, dtype=np.float32)[np.arange(400) % 2]
    found = interval(resampled((logits, labels))["accuracy"])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.451, 0.549), abs=0.008)


def test_four_pictures_of_each_lesion_are_no_more_certain_than_one() -> None:
    logits, labels = one = drawn(3, 100, 3)
    lesions = [f"lesion {i}" for i in range(100)]
    of_one = headline_intervals(resampled(one, lesions))
    four = np.repeat(logits, 4, axis=0), np.repeat(labels, 4)
    of_four = headline_intervals(resampled(four, [name for name in lesions for _ in range(4)]))
    as_if_independent = headline_intervals(resampled(four))
    for name in HEADLINE:
        narrow, wide, same = as_if_independent[name], of_four[name], of_one[name]
        assert narrow is not None
        assert wide is not None
        assert same is not None
        assert narrow.high - narrow.low < 0.7 * (wide.high - wide.low), name
        if name != "calibration_error":
            assert (wide.low, wide.high) == pytest.approx((same.low, same.high)), name


def test_a_class_that_a_resample_lacks_takes_no_part_in_its_average() -> None:
    """Two images, of one class each, one right: a resample of one image alone is all right or all wrong."""
    found = resampled((np.array([[1.0, 0.0], [1.0, 0.0]], np.float32), np.array([0, 1])), n_resamples=200)
    recall = found["recall"]
    assert set(found["balanced_accuracy"]) == {0.0, 0.5, 1.0}
    assert np.isnan(recall[1][found["balanced_accuracy"] == 1]).all()
    assert class_intervals(found, ("a", "b"))["b"]["recall"] == Interval(0, 0)
    assert class_intervals(found, ("a", "b"))["a"]["auroc"] == Interval(0.5, 0.5), "a tie, where both are there"


def test_the_resamples_come_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = drawn(0, 30, 3)
    first = resampled(one, n_resamples=50, seed=1)["accuracy"]
    assert (resampled(one, n_resamples=50, seed=1)["accuracy"] == first).all()
    assert (resampled(one, n_resamples=50, seed=2)["accuracy"] != first).any()
    monkeypatch.setattr(bootstrap, "_MAX_WEIGHTS", 30 * 7)
    assert (resampled(one, n_resamples=50, seed=1)["accuracy"] == first).all(), "in pieces"


def test_one_group_has_no_interval_and_two_resamples_are_the_fewest() -> None:
    assert draw_resamples(["a", "a"]) is None
    assert interval(np.array([np.nan])) is None
    with pytest.raises(SettingError, match="n_resamples must be at least 2, got 1"):
        draw_resamples(["a", "b"], n_resamples=1)


def test_all_intervals_of_774_images_of_7_classes_take_less_than_2_seconds() -> None:
    one = drawn(0, 774, 7)
    started = time.process_time()
    found = resampled(one)
    headline_intervals(found)
    class_intervals(found, tuple("abcdefg"))
    assert time.process_time() - started < 2
