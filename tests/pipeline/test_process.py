"""Device, seeds, allocator: what belongs to the whole process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError, SettingError
from pipeline.process import MAX_SEED, derived_seed, resolve_device

words = st.one_of(st.integers(0, 10**6), st.text(st.characters(codec="ascii"), max_size=8))


def test_the_allocator_is_tuned_where_the_c_library_is_glibc_and_left_alone_elsewhere() -> None:
    """In a process of its own: the setting cannot be taken back."""
    tuned = "from pipeline.process import tune_allocator; print(tune_allocator(), tune_allocator())"
    done = subprocess.run([sys.executable, "-W", "error", "-c", tuned], capture_output=True, text=True, check=True)
    expected = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    assert done.stdout.split() == [str(expected)] * 2


def test_process_needs_no_torch_to_be_imported() -> None:
    """The allocator must be set before the first tensor, so before torch."""
    code = "import sys, pipeline.process; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_auto_takes_a_device_that_is_there() -> None:
    device = resolve_device("auto")
    assert resolve_device(device) == device
    assert torch.zeros(1, device=device).device.type == device
    assert resolve_device("cpu") == "cpu"


@pytest.mark.parametrize("device", ["tpu", "gpu", "", "CPU", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device: str) -> None:
    with pytest.raises(SettingError, match=f"no device '{device}'; it has .*cpu") as caught:
        resolve_device(device)
    assert isinstance(caught.value, PipelineError)


def test_derived_seeds_are_pinned() -> None:
    """Runs of the same seed and version 1 of everything must stay what they were."""
    assert derived_seed(0) == 8493733112532773764
    assert derived_seed(42, 3, "order") == 8393508602764272230


@given(seed=st.integers(0, MAX_SEED), purpose=st.lists(words, max_size=3))
def test_a_derived_seed_is_in_range_and_repeatable(seed: int, purpose: list[object]) -> None:
    found = derived_seed(seed, *purpose)
    assert 0 <= found <= MAX_SEED
    assert derived_seed(seed, *purpose) == found


def test_seeds_of_different_purposes_differ() -> None:
    arguments = [(seed, epoch, purpose) for seed in range(5) for epoch in range(5) for purpose in ("order", "dropout")]
    arguments += [(1, 11), (11, 1), (1, 1, 1), (111,)]
    assert len({derived_seed(*each) for each in arguments}) == len(arguments)


def test_torch_takes_every_derived_seed() -> None:
    for number in range(50):
        torch.Generator().manual_seed(derived_seed(number, "weights"))
