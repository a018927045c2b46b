"""Batches grow with the run, and never so far that too few steps are left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.batches import automatic_batch_size, with_batch_size
from pipeline.training.config import TrainConfig


@pytest.mark.parametrize(
    ("n_images", "epochs", "device", "expected"),
    [
        (60, 2, "cpu", 32),
        (3_087, 30, "cpu", 32),  # measured: 64 were worse
        (8_000, 40, "cpu", 64),
        (10_000, 100, "cpu", 128),
        (1_000_000, 40, "cpu", 128),
        (1_000_000, 40, "cuda", 512),
    ],
)
def test_a_longer_run_takes_larger_batches(n_images: int, epochs: int, device: str, expected: int) -> None:
    assert automatic_batch_size(n_images * epochs, device) == expected


@given(n_shown=st.integers(2, 10**9), device=st.sampled_from(["cpu", "cuda", "mps"]))
def test_more_than_the_smallest_batch_is_taken_only_where_5000_steps_are_left(n_shown: int, device: str) -> None:
    found = automatic_batch_size(n_shown, device)
    assert found == 32 or n_shown / found >= 5_000


def test_a_size_that_was_asked_for_stays() -> None:
    assert with_batch_size(TrainConfig(batch_size=7), 10**6, "cpu").batch_size == 7
    assert with_batch_size(TrainConfig(epochs=2), 100, "cpu").batch_size == 32
