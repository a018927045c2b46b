"""AUROC and log loss against scikit-learn and by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import log_loss, roc_auc_score

from pipeline.metrics.full import full_metrics, negative_log_likelihood, probabilities

from .answering import Drawn, some_answers


def classes_of(logits: np.ndarray) -> tuple[str, ...]:
    return tuple(f"class {c}" for c in range(logits.shape[1]))


@given(some_answers)
@settings(max_examples=25, deadline=None)
def test_the_scores_of_probabilities_are_those_of_scikit_learn(one: Drawn) -> None:
    logits, labels = one
    found = full_metrics(logits, labels, classes_of(logits))
    p = probabilities(logits)
    assert found.nll_nats == pytest.approx(log_loss(labels, p, labels=range(logits.shape[1])), rel=1e-6)
    known = []
    for c, name in enumerate(found.per_class):
        expected = roc_auc_score(labels == c, p[:, c]) if 0 < (labels == c).sum() < len(labels) else None
        assert found.per_class[name]["auroc"] == expected
        known += [] if expected is None else [expected]
    assert found.macro_auroc == (pytest.approx(np.mean(known)) if known else None)


@given(some_answers)
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_images_is_nothing_to_a_score(one: Drawn) -> None:
    logits, labels = one
    backwards = full_metrics(logits[::-1], labels[::-1], classes_of(logits)).headline()
    assert backwards == pytest.approx(full_metrics(logits, labels, classes_of(logits)).headline())


def test_a_uniform_answer_loses_the_logarithm_of_the_number_of_classes() -> None:
    assert negative_log_likelihood(np.zeros((3, 5), np.float32), np.array([0, 1, 4])) == pytest.approx(math.log(5))


def test_the_log_loss_of_a_sure_mistake_is_large_and_finite() -> None:
    assert negative_log_likelihood(np.array([[1e4, 0.0]], np.float32), np.array([1])) == pytest.approx(1e4)


def test_a_class_that_is_absent_or_alone_has_no_auroc() -> None:
    found = full_metrics(np.eye(3, dtype=np.float32)[[0, 0]], np.array([0, 0]), ("a", "b", "c"))
    assert [scores["auroc"] for scores in found.per_class.values()] == [None, None, None]
    assert found.macro_auroc is None


def test_all_scores_become_plain_json() -> None:
    found = full_metrics(np.eye(2, dtype=np.float32), np.array([0, 1]), ("a", "b")).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False))["per_class"]["a"]["auroc"] == 1.0
    assert len(found["calibration"]) == 15
