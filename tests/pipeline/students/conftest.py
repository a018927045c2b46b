"""Cards, and files such as users write."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.card import StudentCard

CLASSES = ("akiec", "mel", "nv")

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, n_classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x))).mean((2, 3))
        return self.head(self.drop(x))

def build(n_classes):
    return Net(n_classes)
"""


@pytest.fixture(scope="session")
def card_of() -> Callable[..., StudentCard]:
    """The card of a student of this name."""

    def card_of(name: str, n_classes: int = 3, size_px: int = 64) -> StudentCard:
        classes = tuple(f"class {i}" for i in range(n_classes))
        return StudentCard(
            student=name, tasks={"class": classes}, size_px=size_px, geometry="warp", cache_id="0" * 64,
            taught=True, teacher="none",
        )  # fmt: skip

    return card_of


@pytest.fixture(scope="session")
def small_network() -> str:
    """The text of a file whose `build` makes a student of a thousand weights."""
    return MODEL


@pytest.fixture
def classes() -> tuple[str, ...]:
    """Three, sorted."""
    return CLASSES


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., str]:
    """`own(text)`: a user's file with that text, or a small network; what --student is told."""

    def own(text: str = MODEL, *, file: str = "my_model.py", function: str = "build") -> str:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return f"{path}:{function}"

    return own


@pytest.fixture
def own_with(own: Callable[..., str]) -> Callable[..., str]:
    """The small network with some of its text replaced."""

    def own_with(**changes: str) -> str:
        text = MODEL
        for old, new in changes.items():
            assert TEXTS[old] in text
            text = text.replace(TEXTS[old], new)
        return own(text)

    return own_with


TEXTS = {
    "answer": "return self.head(self.drop(x))",
    "features": "x = torch.relu(self.norm(self.stem(x))).mean((2, 3))",
    "result": "return Net(n_classes)",
    "dropout": "nn.Dropout(0.5)",
    "width": "8",
    "build": "def build(n_classes):",
}
