"""The learning-rate schedule and the moving average of weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.training.optimisation import MovingAverage, learning_rate


def test_the_schedule_is_the_documented_curve() -> None:
    found = [learning_rate(step, 100, 0.2, 0.1) for step in range(100)]
    assert found[:10] == pytest.approx([0.02 * (step + 1) for step in range(10)])
    assert found[10] == pytest.approx(0.2)
    assert found[40] == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi / 3)))
    assert found[55] == pytest.approx(0.1)
    assert found[99] == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * 89 / 90)))


@given(total_steps=st.integers(1, 3000), lr_peak=st.floats(1e-6, 1), warmup_fraction=st.floats(0, 0.5))
def test_the_schedule_rises_to_the_peak_and_falls_towards_zero(
    total_steps: int, lr_peak: float, warmup_fraction: float
) -> None:
    stride = max(1, total_steps // 50)
    found = [learning_rate(step, total_steps, lr_peak, warmup_fraction) for step in range(0, total_steps, stride)]
    assert all(0 < value <= lr_peak * (1 + 1e-12) for value in found)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)


def test_a_run_of_one_step_takes_it_at_the_peak() -> None:
    assert learning_rate(0, 1, 0.5) == 0.5


class Small(nn.Module):
    """A weight, a float buffer and a counter."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 2), value))
        self.register_buffer("mean", torch.full((3,), value))
        self.register_buffer("count", torch.tensor(int(value)))


def test_the_average_follows_the_hand_computed_numbers() -> None:
    """Decays of updates 0, 1, 2 are 1/10, 2/11, 3/12; values 0 -> 10, 10, 20."""
    average = MovingAverage(Small(0.0), decay=0.999)
    expected = [9.0, 9.0 * 2 / 11 + 10.0 * 9 / 11, 0.0]
    expected[2] = expected[1] * 0.25 + 20.0 * 0.75
    for step, value in enumerate((10.0, 10.0, 20.0)):
        average.update(Small(value), step)
        for tensor in (average.model.weight, average.model.mean):
            assert tensor.flatten()[0].item() == pytest.approx(expected[step], rel=1e-6)
        assert average.model.count.item() == int(value), "counters are copied"


def test_a_late_update_moves_by_the_given_decay() -> None:
    average = MovingAverage(Small(0.0), decay=0.9)
    average.update(Small(1.0), step=1_000_000)
    assert average.model.weight[0, 0].item() == pytest.approx(0.1, rel=1e-5)


def test_the_average_is_a_model_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    average = MovingAverage(model, decay=0.9)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    with torch.no_grad():
        average.model[0].weight.zero_()
    assert all(torch.equal(now, then) for now, then in zip(model.state_dict().values(), before, strict=True))
    assert model.training
    assert not average.model.training
    assert not any(weight.requires_grad for weight in average.model.parameters())


def test_the_average_goes_on_after_its_weights_were_loaded() -> None:
    average = MovingAverage(Small(0.0), decay=0.5)
    average.model.load_state_dict(Small(4.0).state_dict())
    average.update(Small(8.0), step=1000)
    assert average.model.weight[0, 0].item() == 6.0
    assert average.model.mean[0].item() == 6.0


def test_an_average_of_equal_models_stays_what_it_is() -> None:
    average = MovingAverage(Small(0.7), decay=0.99)
    for step in range(20):
        average.update(Small(0.7), step)
    torch.testing.assert_close(average.model.weight, Small(0.7).weight)
