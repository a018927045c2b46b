"""The layout in which pixels and weights are laid out in memory, and how pixels become a model's input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.card import StudentCard
from pipeline.inference import memory_format, normalise
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


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_levels_are_normalised_to_the_bits_of_the_plain_formula(layout: torch.memory_format) -> None:
    card = StudentCard(
        student="s", tasks={"class": ("a", "b")}, size_px=5, geometry="warp", cache_id="", taught=True, teacher=""
    )
    pixels = torch.arange(2 * 3 * 5 * 7, dtype=torch.int64).remainder(256).to(torch.uint8).view(2, 3, 5, 7)
    mean, std = (torch.tensor(values).mul(255).view(1, 3, 1, 1) for values in (card.mean, card.std))
    for handed_over in (pixels, pixels.contiguous(memory_format=torch.channels_last)):
        found = normalise(handed_over, card, "cpu", layout)
        assert torch.equal(found, (pixels.float() - mean) / std)
        assert found.is_contiguous(memory_format=layout)
    assert torch.equal(pixels.flatten()[:3], torch.tensor([0, 1, 2], dtype=torch.uint8)), "what was handed over stays"
