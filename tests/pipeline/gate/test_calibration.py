"""Entropy against numbers counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gate.calibration import mean_entropy, temperature_range


def test_the_largest_logits_there_are_overflow_nothing() -> None:
    logits = np.array([[3e38, -3e38], [-3e38, 3e38]], np.float32)
    assert str(mean_entropy(logits, 1)) == "0.0", "not -0.0"


def test_the_entropy_equals_the_one_computed_by_hand() -> None:
    """(log 9, 0) is (9/10, 1/10) at T 1 and (3/4, 1/4) at T 2."""
    logits = np.array([[math.log(9), 0.0]], np.float32)
    assert mean_entropy(logits, 1) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), rel=1e-6)
    assert mean_entropy(logits, 2) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), rel=1e-6)
    assert mean_entropy(np.zeros((3, 7)), 4) == pytest.approx(math.log(7))
    assert mean_entropy(np.array([[1e30, 0.0, -1e30]], np.float32), 1) == 0


def test_the_temperatures_are_the_roots_with_one_digit() -> None:
    """0.3 and 0.8 bits are the entropies of odds e^2.879 and e^1.136: T = 10 / 2.879 = 3.47 and 10 / 1.136 = 8.80."""
    assert temperature_range(np.array([[10.0, 0.0]])) == (3, 9)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.floats(0.1, 100))
def test_the_entropy_within_the_range_is_neither_that_of_labels_nor_uniform(seed: int, n: int, scale: float) -> None:
    logits = np.random.default_rng(seed).normal(0, scale, (20, n))
    found = temperature_range(logits)
    assert found is not None
    low, high = (mean_entropy(logits, t) / math.log(n) for t in found)
    assert 0.15 < low < 0.5, "one digit is up to a third off"
    assert 0.6 < high < 0.95


def test_answers_that_no_temperature_spreads_have_no_range() -> None:
    assert temperature_range(np.zeros((5, 3))) is None
    nearly_equal = np.random.default_rng(1310).normal(0, 0.01, (20, 2))
    assert temperature_range(nearly_equal) is None, "it takes a T below the limits to tell these apart"
