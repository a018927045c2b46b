"""The layout in which pixels and weights are laid out in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.inference import memory_format
from pipeline.students.build import build_student


@pytest.mark.parametrize(
    ("layer", "is_safe"),
    [
        (nn.Conv2d(15, 32, 1, stride=2), False),
        (nn.Conv2d(32, 32, 1, stride=(1, 2), groups=4), False),
        (nn.Conv2d(16, 32, 1, stride=2), True),
        (nn.Conv2d(3, 32, 1), True),
        (nn.Conv2d(3, 32, 3, stride=2), True),
    ],
)
def test_no_model_learns_in_a_layout_in_which_torch_corrupts_its_memory(layer: nn.Module, is_safe: bool) -> None:
    """The rows of `is_safe` False end the process in a backward pass, with channels_last on a CPU of AVX-512."""
    model = nn.Sequential(nn.ReLU(), nn.Sequential(layer))
    expected = torch.channels_last if is_safe else torch.contiguous_format
    assert memory_format("cpu", model) == expected
    assert memory_format("cpu") == memory_format("cuda", model) == torch.channels_last, "it is of the backward pass"
    assert memory_format("mps") == torch.contiguous_format


def test_which_students_pay_for_it() -> None:
    assert memory_format("cpu", build_student("shufflenet_v2_x1_0", 3, 64)) == torch.channels_last
    assert memory_format("cpu", build_student("timm:mobileone_s0", 3, 64)) == torch.contiguous_format
