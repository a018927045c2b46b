"""Run a teacher over items of unequal numbers of views in forward passes of equal size, which cut across the items.

A row's bits depend on how many rows go through together, so every pass has the same number, the last one padded.
Never writes a row. B rows a forward pass, V views of an item, D embedding, S pixels.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.loaders import SampleViews

if TYPE_CHECKING:
    from pipeline.teachers.teacher import Teacher


class Embeds(Protocol):
    """A teacher, or who stands before one."""

    def embed(self, pixels: Tensor) -> NDArray[np.float32]:
        """uint8 [B, 3, S, S] -> float32 [B, D]."""


def embed_in_passes(
    items: Iterator[SampleViews],
    teacher: Embeds,
    batch_size: int,
    after_pass: Callable[[Tensor, NDArray[np.float32]], None],
    *,
    ahead: Teacher | None = None,
) -> Iterator[tuple[SampleViews, NDArray[np.float32]]]:
    """(item, float32 [V, D]) in order, through forward passes of exactly `batch_size` rows that cut across items.

    `after_pass` gets each pass's views, uint8 [B, 3, S, S], and their embeddings, without the padding. With `ahead`
    (`on_gpu`), the teacher itself, passes after the first one run while the caller has the rows of the one before.
    """
    waiting: deque[tuple[SampleViews, list[NDArray[np.float32]]]] = deque()
    passes = _passes(items, waiting, batch_size)
    embedded = ((one, teacher.embed(one.pixels)) for one in passes)
    for one, embedding_BD in embedded if ahead is None else _one_ahead(passes, embedded, ahead):
        yield from _hand_out(embedding_BD[: one.n_rows], waiting)
        after_pass(one.pixels[: one.n_rows], embedding_BD[: one.n_rows])


@dataclass(frozen=True)
class _Pass:
    """What goes through the teacher together."""

    pixels: Tensor
    """uint8 [B, 3, S, S], padded to the full number of rows."""
    n_rows: int
    """Without the padding."""


_Embedded = Iterator[tuple[_Pass, NDArray[np.float32]]]


def _passes(items: Iterator[SampleViews], waiting: deque[Any], batch_size: int) -> Iterator[_Pass]:
    """Passes of equal size; each item that is begun joins those that wait for their rows."""
    pixels: list[Tensor] = []
    for item in items:
        waiting.append((item, []))
        pixels.extend(item.pixels)
        while len(pixels) >= batch_size:
            batch, pixels = pixels[:batch_size], pixels[batch_size:]
            yield _Pass(torch.stack(batch), batch_size)
    if pixels:
        # The last pass is padded: a row's bits depend on how many rows go through together.
        padding = [torch.zeros_like(pixels[0])] * (batch_size - len(pixels))
        yield _Pass(torch.stack(pixels + padding), len(pixels))


def on_gpu(teacher: Teacher) -> Teacher | None:
    """The teacher, where its passes leave this process's cores alone: those may render and seal beside it."""
    return teacher if teacher.device.startswith("cuda") else None


def _one_ahead(passes: Iterator[_Pass], in_turn: _Embedded, teacher: Teacher) -> _Embedded:
    """The same passes in the same order, so that no bit changes, in a thread of their own.

    While one is on the device, this thread renders or fetches the next, and seals the rows of the one before.
    """
    # The first one alone: it is compared with float32, which takes memory, and is halved where it does not fit.
    yield from itertools.islice(in_turn, 1)
    device = torch.cuda.current_device() if teacher.device.startswith("cuda") else None
    with ThreadPoolExecutor(1, initializer=_on_device, initargs=(device,)) as thread:
        running: tuple[_Pass, Future[tuple[NDArray[np.float32], int]]] | None = None
        for one in passes:
            started = one, thread.submit(teacher.embed_counted, one.pixels)
            if running:
                yield _ended(running, teacher)
            running = started
        if running:
            yield _ended(running, teacher)


def _on_device(number: int | None) -> None:
    """Which GPU is the current one is a matter of each thread."""
    if number is not None:
        torch.cuda.set_device(number)


def _ended(
    running: tuple[_Pass, Future[tuple[NDArray[np.float32], int]]], teacher: Teacher
) -> tuple[_Pass, NDArray[np.float32]]:
    embedding_BD, n_recomputed = running[1].result()
    teacher.n_recomputed += n_recomputed  # only now: rows of a pass that nobody has seen yet may still be lost
    return running[0], embedding_BD


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
