"""Calibration against numbers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.metrics.calibration import calibration, confidence, expected_calibration_error


def test_the_calibration_error_equals_the_one_counted_by_hand() -> None:
    """Two images at 0.95, one of them wrong; two at 0.75, both right: (|0.5 - 0.95| + |1 - 0.75|) / 2."""
    logits = np.log([[0.95, 0.05], [0.05, 0.95], [0.75, 0.25], [0.25, 0.75]])
    assert expected_calibration_error(logits, np.array([0, 0, 0, 1])) == pytest.approx(0.35)
    assert confidence(logits) == pytest.approx([0.95, 0.95, 0.75, 0.75])


def test_surpluses_within_a_bin_cancel_and_between_bins_do_not() -> None:
    """At 0.95 and 0.99, which share the last of 15 bins: one right, one wrong."""
    logits = np.log([[0.95, 0.05], [0.01, 0.99]])
    assert expected_calibration_error(logits, np.array([0, 0])) == pytest.approx(0.97 - 0.5)
    assert expected_calibration_error(logits, np.array([0, 0]), n_bins=50) == pytest.approx((0.05 + 0.99) / 2)


def test_a_sure_and_right_teacher_is_calibrated() -> None:
    assert expected_calibration_error(np.array([[400.0, -400.0]], np.float32), np.array([0])) == 0


def test_the_confidence_of_the_largest_logits_there_are_overflows_nothing() -> None:
    logits = np.array([[3e38, -3e38], [-3e38, 3e38]], np.float32)
    assert confidence(logits).tolist() == [1, 1]


def test_the_bins_of_a_reliability_diagram_hold_every_image_once() -> None:
    """Confidences 0.95, 0.99 (the last bin; one right) and 0.5, which is the upper end of its bin of two."""
    logits = np.log([[0.95, 0.05], [0.01, 0.99], [0.5, 0.5]])
    last = calibration(logits, np.array([0, 0, 0]))[-1]
    assert (last.n_images, last.accuracy, last.confidence) == (2, 0.5, pytest.approx(0.97))
    lower, upper = calibration(logits, np.array([0, 0, 0]), n_bins=2)
    assert (lower.n_images, upper.n_images, lower.high, upper.low) == (1, 2, 0.5, 0.5)
    empty = calibration(logits, np.array([0, 0, 0]))[0]
    assert (empty.n_images, empty.accuracy, empty.confidence) == (0, None, None)
