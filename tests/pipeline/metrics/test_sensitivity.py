"""The operating point, by hand and against scikit-learn's ROC curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from pipeline.errors import SettingError
from pipeline.metrics.bootstrap import draw_resamples
from pipeline.metrics.sensitivity import Group, OperatingPoint, check_group, operating_point

from .answering import Drawn, some_answers

SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.15, 0.55, 0.75, 0.85])
POSITIVE = np.arange(14) >= 10
TEN_OTHERS = Group(SCORES, POSITIVE)


def at(images: Group, specificity: float, threshold: float | None = None, **options: object) -> OperatingPoint:
    point = operating_point(images, ("mel",), specificity, threshold=threshold, chosen_on="test", **options)
    assert point is not None
    return point


@pytest.mark.parametrize(
    ("specificity", "threshold", "sensitivity", "reached"),
    [
        (0.6, 0.7, 0.5, 0.6),
        (0.7, 0.75, 0.5, 0.7),
        (0.9, 0.95, 0.0, 0.9),
        (0.1, 0.15, 1.0, 0.1),
        (0.11, 0.3, 0.75, 0.2),
        (1.0, pytest.approx(0.95), 0.0, 1.0),
    ],
)
def test_the_threshold_is_the_smallest_that_leaves_enough_of_the_others_alone(
    specificity: float, threshold: float, sensitivity: float, reached: float
) -> None:
    """Ten others at 0.1 ... 0.9 and 0.95; four of the group at 0.15, 0.55, 0.75 and 0.85."""
    point = at(TEN_OTHERS, specificity)
    assert point.threshold == threshold
    assert (point.sensitivity, point.specificity) == pytest.approx((sensitivity, reached))
    assert (point.n_positive, point.n_negative, point.same_images) == (4, 10, True)


@given(some_answers, st.floats(0.01, 1))
@settings(deadline=None)
def test_no_threshold_of_the_roc_curve_that_is_as_specific_finds_more(one: Drawn, specificity: float) -> None:
    logits, labels = one
    classes = tuple(map(str, range(logits.shape[1])))
    images = Group.of(logits, labels, classes, classes[:1])
    point = operating_point(images, classes[:1], specificity, threshold=None, chosen_on="test")
    if images.is_positive_N.all():
        assert point is None
        return
    assert point is not None
    assert point.specificity is not None
    assert point.specificity >= specificity - 1e-9
    if images.is_positive_N.any():
        fpr, tpr, _ = roc_curve(images.is_positive_N, images.score_N, drop_intermediate=False)
        assert point.sensitivity == pytest.approx(tpr[1 - fpr >= specificity - 1e-9].max())
    else:
        assert point.sensitivity is None


def test_a_groups_score_is_the_sum_of_its_probabilities() -> None:
    logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    images = Group.of(logits, np.array([1, 2]), ("bcc", "mel", "nv"), ("mel", "bcc"))
    assert images.score_N == pytest.approx([0.8, 0.3])
    assert images.is_positive_N.tolist() == [True, False]


def test_a_threshold_of_other_images_is_applied_as_it_is() -> None:
    point = at(TEN_OTHERS, 0.9, threshold=0.5)
    assert (point.sensitivity, point.specificity, point.same_images) == (0.75, 0.4, False)


def test_the_interval_of_ones_own_threshold_knows_that_it_was_chosen() -> None:
    resamples = draw_resamples([str(i) for i in range(14)], n_resamples=300)
    own, given_to_it = (at(TEN_OTHERS, 0.6, threshold, resamples=resamples) for threshold in (None, 0.7))
    assert own.sensitivity == given_to_it.sensitivity
    for point in (own, given_to_it):
        assert point.sensitivity_interval is not None
        assert point.specificity_interval is not None
        assert point.sensitivity_interval.low <= 0.5 <= point.sensitivity_interval.high
    assert own.specificity_interval is not None
    assert own.specificity_interval.low >= 0.6 - 1e-9, "reached in every resample"
    assert given_to_it.specificity_interval is not None
    assert given_to_it.specificity_interval.low < 0.5


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (["mell"], r"no class is called 'mell'; did you mean 'mel'\? The classes: bcc, mel, nv"),
        (["x"], r"no class is called 'x'\. The classes: bcc, mel, nv"),
        (["mel", "mel"], "names a class twice: mel, mel"),
        (["nv", "mel", "bcc"], "names every class: no class is left"),
    ],
)
def test_a_group_that_makes_no_sense_is_refused(group: list[str], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        check_group(group, ("bcc", "mel", "nv"))
