"""A head is scikit-learn's logistic regression, whatever the number of views, and C is what held-out images prefer."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

from data.errors import BadSamples
from pipeline.repair import logistic
from pipeline.repair.logistic import FitData, fit_head, unit_length

CLASSES = ("a", "b", "c")


def clusters(
    n_samples: int = 90, n_classes: int = 3, n_features: int = 8, noise: float = 1.0, n_views: int = 1
) -> FitData:
    """Samples around a centre a class, each with some equal views."""
    rng = np.random.default_rng(0)
    labels = np.arange(n_samples) % n_classes
    embedding = rng.normal(size=(n_classes, n_features))[labels] + noise * rng.normal(size=(n_samples, n_features))
    rows = np.repeat(np.arange(n_samples), n_views)
    unit = unit_length(embedding)[rows].astype(np.float32)
    return FitData(
        embedding_RD=unit, sample_R=rows, clean_N=np.arange(n_samples) * n_views, labels_N=labels, groups_N=None
    )


def test_the_logits_are_those_of_scikit_learns_model() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    data = clusters()
    found = fit_head(data, CLASSES, 5, 0)
    scaled = StandardScaler().fit_transform(data.embedding_RD.astype(np.float64))
    theirs = LogisticRegression(C=found.c, tol=1e-8, max_iter=5000).fit(scaled, data.labels_N)
    ours = softmax(found.head.logits(7 * data.embedding_RD), axis=1)
    np.testing.assert_allclose(ours, theirs.predict_proba(scaled), atol=2e-3)


def test_two_classes_have_a_logit_each_whose_difference_is_the_log_odds() -> None:
    data = clusters(n_classes=2)
    found = fit_head(data, CLASSES[:2], 5, 0)
    logits = found.head.logits(data.embedding_RD)
    assert logits.shape == (90, 2)
    np.testing.assert_allclose(logits.sum(axis=1), 0, atol=1e-12)
    assert (logits.argmax(axis=1) == data.labels_N).mean() > 0.8


def test_more_views_of_the_same_samples_change_nothing() -> None:
    one, three = fit_head(clusters(), CLASSES, 5, 0), fit_head(clusters(n_views=3), CLASSES, 5, 0)
    assert one.c == three.c
    np.testing.assert_allclose(one.head.logits(np.eye(8)), three.head.logits(np.eye(8)), atol=0.02)


def test_held_out_images_prefer_a_weak_head_on_noise_and_a_strong_one_on_signal() -> None:
    strong, weak = fit_head(clusters(noise=0.2), CLASSES, 5, 0), fit_head(clusters(noise=30), CLASSES, 5, 0)
    assert weak.c < 1e-3 < 0.1 <= strong.c
    held_out = (weak.held_out_NC.argmax(axis=1) == clusters().labels_N).mean()
    assert 0.1 < held_out < 0.6
    assert (strong.held_out_NC.argmax(axis=1) == clusters().labels_N).mean() > 0.95


def test_folds_within_a_head_keep_groups_whole() -> None:
    """Each sample has a twin in its group, with the label that only the twin could tell."""
    rng = np.random.default_rng(1)
    twins = np.repeat(rng.normal(size=(60, 300)), 2, axis=0)
    labels = np.repeat(rng.integers(0, 3, 60), 2)
    rows = np.arange(120)
    data = FitData(
        embedding_RD=unit_length(twins).astype(np.float32), sample_R=rows, clean_N=rows, labels_N=labels, groups_N=None
    )
    torn = fit_head(data, CLASSES, 5, 0)
    whole = fit_head(replace(data, groups_N=np.repeat(np.arange(60), 2).astype(str)), CLASSES, 5, 0)
    assert (torn.held_out_NC.argmax(axis=1) == labels).mean() > 0.85
    assert (whole.held_out_NC.argmax(axis=1) == labels).mean() < 0.55


def test_a_part_has_the_rows_of_its_samples() -> None:
    data = clusters(n_views=2)
    chosen = np.arange(90) % 4 == 1
    part = data.part(chosen)
    np.testing.assert_array_equal(part.embedding_RD[part.clean_N], data.embedding_RD[data.clean_N[chosen]])
    np.testing.assert_array_equal(part.labels_N[part.sample_R], data.labels_N[data.sample_R[chosen[data.sample_R]]])


def test_a_class_of_one_image_or_one_group_is_named() -> None:
    data = clusters()
    with pytest.raises(BadSamples, match=r"too few train images of d \(0\); a probe needs at least 2 of each class"):
        fit_head(data, (*CLASSES, "d"), 5, 0)
    groups = np.where(data.labels_N == 1, "one", np.arange(90).astype(str))
    with pytest.raises(BadSamples, match=r"too few train groups of b \(1\) here; a probe"):
        fit_head(replace(data, groups_N=groups), CLASSES, 5, 0, " here")


def test_a_class_of_two_images_is_enough() -> None:
    data = clusters()
    kept = (data.labels_N != 2) | (np.arange(90) < 6)
    assert fit_head(data.part(kept), CLASSES, 5, 0).scored_N.all()


def test_a_solver_that_stops_early_is_a_log_line_and_no_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logistic, "_MAX_STEPS", 2)
    with caplog.at_level(logging.INFO):
        fit_head(clusters(), CLASSES, 3, 0)
    assert "the probe's solver stopped after 2 steps" in caplog.text


def test_an_embedding_of_zeros_has_finite_logits() -> None:
    assert np.isfinite(fit_head(clusters(), CLASSES, 3, 0).head.logits(np.zeros((1, 8)))).all()
