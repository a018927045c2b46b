"""What a process trains with is chosen by timing, said, switchable, and leaves model and random numbers alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from pipeline.errors import SettingError
from pipeline.training import process_settings
from pipeline.training.process_settings import ProcessOptions, chosen, settle


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Dropout(0.5), nn.Flatten(), nn.Linear(576, 3))


def settled(model: nn.Module, options: ProcessOptions) -> process_settings.ProcessSettings:
    return settle(model, options, "cpu", "fp32", "adamw", 8, 16)


@pytest.mark.parametrize(
    ("timed_ms", "expected"),
    [
        ({1: 72.0, 2: 50.0}, 2),
        ({1: 72.0, 2: 300.0}, 1),  # other processes have the second core
        ({1: 10.0, 2: 9.8}, 1),  # not worth a core
        ({1: 100.0, 8: 20.0, 16: 19.0}, 8),
    ],
)
def test_as_many_threads_are_taken_as_pay(timed_ms: dict[int, float], expected: int) -> None:
    assert chosen(timed_ms) == expected


def test_threads_are_timed_on_a_copy_and_no_random_number_is_lost(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = settled(model, ProcessOptions())
    assert set(found.timed_ms) == {1, 2}
    assert found.threads == torch.get_num_threads() == chosen(found.timed_ms)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert " ms for 16 images, " in found.line()


def test_where_the_user_or_the_environment_has_said_how_many_nothing_is_timed(model: nn.Module) -> None:
    torch.set_num_threads(1)
    assert not settled(model, ProcessOptions()).timed_ms
    found = settled(model, ProcessOptions(threads=2))
    assert (found.threads, torch.get_num_threads(), found.timed_ms) == (2, 2, {})


def test_without_tuning_torch_is_as_it_comes(model: nn.Module) -> None:
    torch.set_num_threads(2)
    found = settled(model, ProcessOptions(tuned=False))
    assert (found.layout, found.fused, found.threads, found.timed_ms) == (torch.contiguous_format, False, 2, {})
    assert found.line() in ("cpu, fp32, 2 threads; torch as it comes", "cpu, fp32, 2 threads; allocator keeps memory")
    tuned = settled(model, ProcessOptions(threads=1))
    assert (tuned.layout, tuned.fused) == (torch.channels_last, True)
    assert "channels_last, fused optimizer" in tuned.line()


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_a_number_of_threads_that_no_machine_has_is_refused(threads: int) -> None:
    with pytest.raises(SettingError, match=r"threads must be in 1\.\.1024"):
        ProcessOptions(threads=threads)
