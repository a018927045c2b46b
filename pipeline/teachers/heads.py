"""Heads: what turns the embedding of a tower into raw logits, in float64 on the CPU, rounded to float32 once.

A float32 product makes a row's bits depend on the rows beside it and on the thread count. Never runs a tower.
B batch, C classes, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Head(Protocol):
    """Tower outputs, float32 [B, D], -> raw logits, float32 [B, C]."""

    @property
    def input_size(self) -> int:
        """D."""
        ...

    def logits(self, embedding_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw logits."""
        ...


@dataclass(frozen=True)
class ZeroShotHead:
    """The text side, after its tower is gone: logits = cos(image, text) * scale + bias (Zhai et al. 2023, eq. 1)."""

    text_CD: NDArray[np.float64]
    """One unit vector a class, float64 [C, D]."""
    scale: float
    bias: float
    """0 for CLIP (Radford et al. 2021), which has none."""

    @property
    def input_size(self) -> int:
        """D."""
        return int(self.text_CD.shape[1])

    def logits(self, embedding_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw logits, float32 [B, C], of un-normalised image embeddings, float32 [B, D]."""
        image_BD = embedding_BD.astype(np.float64)
        image_BD /= np.linalg.norm(image_BD, axis=1, keepdims=True)
        return (image_BD @ self.text_CD.T * self.scale + self.bias).astype(np.float32)


@dataclass(frozen=True)
class LinearHead:
    """The last layer of a classifier: logits = embedding @ weight.T + bias."""

    weight_CD: NDArray[np.float64]
    bias_C: NDArray[np.float64]

    @property
    def input_size(self) -> int:
        """D."""
        return int(self.weight_CD.shape[1])

    def logits(self, embedding_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw logits, float32 [B, C]."""
        return (embedding_BD.astype(np.float64) @ self.weight_CD.T + self.bias_C).astype(np.float32)

    def columns(self, order_C: Sequence[int]) -> LinearHead:
        """The same head with its classes in another order."""
        return LinearHead(self.weight_CD[list(order_C)], self.bias_C[list(order_C)])


@dataclass(frozen=True)
class OutputHead:
    """For a model that cannot be taken apart: its outputs are the logits, their columns brought into order."""

    order_C: tuple[int, ...]

    @property
    def input_size(self) -> int:
        """C."""
        return len(self.order_C)

    def logits(self, embedding_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw logits, float32 [B, C]."""
        return embedding_BD[:, list(self.order_C)]
