"""Metrics against numbers counted by hand, and against scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from pipeline.metrics import agreement, classification_metrics

CLASSES = ("df", "mel", "nv")
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 0, 2, 2, 1, 0])


def logits_for(predicted: NDArray[np.int64], n_classes: int = 3) -> NDArray[np.float32]:
    """Logits whose largest is at the wanted class."""
    return (np.eye(n_classes)[predicted] * 3 - 1).astype(np.float32)


def test_the_metrics_equal_those_counted_by_hand() -> None:
    """
    true \\ said   df mel nv   recall  precision  f1
    df             3   1  0   3/4     3/5        2/3
    mel            1   1  0   1/2     1/3        2/5
    nv             1   1  2   2/4     2/2        2/3
    """
    found = classification_metrics(logits_for(PREDICTED), LABELS, CLASSES)
    assert found.confusion == [[3, 1, 0], [1, 1, 0], [1, 1, 2]]
    assert found.n_samples == 10
    assert found.accuracy == pytest.approx(0.6)
    assert found.balanced_accuracy == pytest.approx((3 / 4 + 1 / 2 + 1 / 2) / 3)
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 5 + 2 / 3) / 3)
    assert found.majority_share == pytest.approx(0.4)
    assert list(found.per_class) == list(CLASSES)
    assert found.per_class["df"] == pytest.approx({"precision": 3 / 5, "recall": 3 / 4, "f1": 2 / 3, "support": 4})
    assert found.per_class["mel"] == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "support": 2})
    assert found.per_class["nv"] == pytest.approx({"precision": 1.0, "recall": 1 / 2, "f1": 2 / 3, "support": 4})


@given(answers=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_the_metrics_are_those_of_scikit_learn(answers: list[tuple[int, int]]) -> None:
    labels, predicted = (np.array(column) for column in zip(*answers, strict=True))
    every = np.arange(4)
    found = classification_metrics(logits_for(predicted, 4), labels, (*CLASSES, "vasc"))
    expected = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0.0)
    present = expected[3] > 0
    assert found.confusion == confusion_matrix(labels, predicted, labels=every).tolist()
    assert found.balanced_accuracy == pytest.approx(expected[1][present].mean(), abs=1e-15)
    assert found.macro_f1 == pytest.approx(expected[2][present].mean(), abs=1e-15)
    for column, values in zip(("precision", "recall", "f1"), expected, strict=False):
        of_classes = [row[column] for row in found.per_class.values()]
        assert of_classes == [
            pytest.approx(value, abs=1e-15) if there else None for value, there in zip(values, present, strict=True)
        ]


def test_a_class_without_samples_is_none_and_takes_no_part_in_the_averages() -> None:
    with_absent = classification_metrics(logits_for(np.array([0, 3, 0]), 4), np.array([0, 0, 1]), (*CLASSES, "vasc"))
    assert with_absent.balanced_accuracy == pytest.approx((1 / 2 + 0) / 2)
    assert with_absent.macro_f1 == pytest.approx((2 * 0.5 * 0.5 / 1.0 + 0) / 2)
    for name in ("nv", "vasc"):
        row = with_absent.per_class[name]
        assert row["support"] == 0
        assert all(row[column] is None for column in ("precision", "recall", "f1"))
    assert with_absent.confusion[0] == [1, 0, 0, 1], "what was said of an absent class stays visible"


def test_a_class_that_nobody_predicts_scores_zero_not_none() -> None:
    found = classification_metrics(logits_for(np.array([0, 0])), np.array([0, 1]), CLASSES)
    assert found.per_class["mel"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}


def test_samples_of_a_single_class_are_scored() -> None:
    found = classification_metrics(logits_for(np.array([1, 1, 0])), np.array([1, 1, 1]), CLASSES)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.balanced_accuracy == pytest.approx(2 / 3)
    assert found.macro_f1 == pytest.approx(0.8)
    assert found.majority_share == 1.0


def test_a_perfect_and_a_constant_answer_score_as_they_should() -> None:
    perfect = classification_metrics(logits_for(LABELS), LABELS, CLASSES)
    assert (perfect.accuracy, perfect.balanced_accuracy, perfect.macro_f1) == (1.0, 1.0, 1.0)
    constant = classification_metrics(logits_for(np.full(10, 2)), LABELS, CLASSES)
    assert constant.accuracy == constant.majority_share
    assert constant.balanced_accuracy == pytest.approx(1 / 3)


def test_metrics_become_plain_numbers() -> None:
    described = classification_metrics(logits_for(PREDICTED), LABELS, CLASSES).to_dict()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["per_class"]["nv"]["support"] == 4


def test_agreement_equals_the_hand_computed_divergence() -> None:
    """Teacher (log 3, 0) is (3/4, 1/4); student (0, 0) is halves; the second image agrees entirely."""
    teacher = np.array([[math.log(3), 0.0], [0.0, 5.0]], np.float32)
    student = np.array([[0.0, 0.0], [2.0, 7.0]], np.float32)
    found = agreement(student, teacher)
    assert found.kl_nats == pytest.approx((0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2, rel=1e-6)
    assert found.top1 == 1.0
    assert agreement(-student, teacher).top1 == 0.5
    assert agreement(teacher + 3, teacher).kl_nats == pytest.approx(0, abs=1e-6)


def test_agreement_of_confident_logits_is_finite() -> None:
    found = agreement(np.array([[500.0, -500.0]], np.float32), np.array([[-500.0, 500.0]], np.float32))
    assert found.kl_nats == pytest.approx(1000.0)
    assert found.top1 == 0.0
