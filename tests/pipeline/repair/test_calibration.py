"""A temperature makes probabilities as sure as they are right, and never makes them worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.repair.calibration import fit_temperature, nll_nats


def drawn(n_samples: int, seed: int = 0, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, 4] and labels drawn from their softmax: calibrated by construction."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (n_samples, 4))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


@pytest.mark.parametrize("planted", [0.25, 1.0, 3.0, 40.0])
def test_a_planted_temperature_is_found(planted: float) -> None:
    logits, labels = drawn(20_000)
    assert fit_temperature(logits * planted, labels) == pytest.approx(planted, rel=0.05)


@given(seed=st.integers(0, 1000), scale=st.floats(0.05, 20))
def test_the_nll_never_rises(seed: int, scale: float) -> None:
    logits, labels = drawn(30, seed)
    temperature = fit_temperature(logits * scale, labels)
    assert 1e-3 <= temperature <= 1e3
    assert nll_nats(logits * scale, labels, temperature) <= nll_nats(logits * scale, labels)


def test_answers_that_are_all_right_or_say_nothing_have_a_finite_temperature() -> None:
    assert 1e-3 <= fit_temperature(np.eye(4) * 5, np.arange(4)) < 0.1
    assert fit_temperature(np.zeros((4, 4)), np.arange(4)) == 1.0


def test_the_nll_is_that_of_the_softmax() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    assert nll_nats(logits, np.array([0, 2])) == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)
    logits[0, 1] = -np.inf
    assert nll_nats(logits, np.array([0, 2])) == pytest.approx(-(np.log(0.5 / 0.75) + np.log(0.8)) / 2)
