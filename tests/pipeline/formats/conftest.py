"""A student of some thousand weights, with a card, whose file every format can hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.card import StudentCard


@pytest.fixture(scope="session")
def small() -> nn.Module:
    """Convolutions of few and of many weights to an output, a norm, a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 64, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3),
    ).eval()  # fmt: skip


@pytest.fixture(scope="session")
def small_card() -> StudentCard:
    """Of three classes and 32 px."""
    return StudentCard(
        student="small", tasks={"class": ("ä", "b", "c")}, size_px=32, geometry="warp", cache_id="ab" * 32, taught=True,
        teacher="a SigLIP",
    )  # fmt: skip


@pytest.fixture(scope="session")
def noise() -> torch.Tensor:
    """Five normalised images."""
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
