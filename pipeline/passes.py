"""Run a teacher over items of unequal numbers of views in forward passes of equal size, which cut across the items.

A row's bits depend on how many rows go through together, so every pass has the same number, the last one padded.
Never writes a row. B rows a forward pass, V views of an item, D embedding, S pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.loaders import SampleViews


class Embeds(Protocol):
    """A teacher, or who stands before one."""

    def embed(self, pixels: Tensor) -> NDArray[np.float32]:
        """uint8 [B, 3, S, S] -> float32 [B, D]."""


def embed_in_passes(
    items: Iterator[SampleViews],
    teacher: Embeds,
    batch_size: int,
    after_pass: Callable[[Tensor, NDArray[np.float32]], None],
) -> Iterator[tuple[SampleViews, NDArray[np.float32]]]:
    """(item, float32 [V, D]) in order, through forward passes of exactly `batch_size` rows that cut across items.

    `after_pass` gets each pass's views, uint8 [B, 3, S, S], and their embeddings, without the padding.
    """
    waiting: deque[tuple[SampleViews, list[NDArray[np.float32]]]] = deque()
    pixels: list[Tensor] = []
    exhausted = False
    while not exhausted or waiting:
        while not exhausted and len(pixels) < batch_size:
            item = next(items, None)
            if item is None:
                exhausted = True
            else:
                waiting.append((item, []))
                pixels.extend(item.pixels)
        if not pixels:
            return
        batch, pixels = pixels[:batch_size], pixels[batch_size:]
        # The last pass is padded: a row's bits depend on how many rows go through together.
        padding = [torch.zeros_like(batch[0])] * (batch_size - len(batch))
        stacked = torch.stack(batch + padding)
        embedding_BD = teacher.embed(stacked)[: len(batch)]
        yield from _hand_out(embedding_BD, waiting)
        after_pass(stacked[: len(batch)], embedding_BD)


def _hand_out(
    embedding_BD: NDArray[np.float32], waiting: deque[Any]
) -> Iterator[tuple[SampleViews, NDArray[np.float32]]]:
    """Give the rows of one pass to the items at the front of the queue; yield and drop those that are complete."""
    start = 0
    for item, rows in list(waiting):
        have = sum(len(part) for part in rows)
        part = embedding_BD[start : start + len(item.view) - have]
        start += len(part)
        rows.append(part)
        if have + len(part) < len(item.view):
            return
        waiting.popleft()
        yield item, np.concatenate(rows)
        if start == len(embedding_BD):
            return
