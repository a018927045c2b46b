"""What stage two asks its loader for: views of samples, as items that are made only when somebody needs them.

An epoch of a large data set has millions of them, and most need no item where their pixels are stored already.
Reads and renders nothing. B batch, M all views of a pass, P columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from data.samples import Sample


@dataclass(frozen=True)
class ViewItem:
    """One view of one sample, by the numbers that it is rendered from."""

    sample: Sample
    params: NDArray[np.float32]
    target: int
    """The caller's own number of this item, handed back with the pixels."""
    row: int = -1
    """Where a store of rendered views has it; -1 of a view that is never stored."""


class ViewBatch(Sequence[ViewItem]):
    """Some views of a pass, known by their numbers in it, which are also their targets."""

    def __init__(
        self, numbers_B: NDArray[np.int64], make: Callable[[NDArray[np.int64]], list[ViewItem]],
        rows_M: NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        self.numbers_B, self._make, self._rows_M = numbers_B, make, rows_M

    @property
    def rows_B(self) -> NDArray[np.int64] | None:
        """Where a store of rendered views has them; None of views that are never stored."""
        return None if self._rows_M is None else self._rows_M[self.numbers_B]

    def part(self, positions: NDArray[np.int64] | slice) -> ViewBatch:
        """Those that stand at these positions."""
        return ViewBatch(self.numbers_B[positions], self._make, self._rows_M)

    def items(self) -> list[ViewItem]:
        """All of them."""
        return self._make(self.numbers_B)

    def __len__(self) -> int:
        return len(self.numbers_B)

    def __iter__(self) -> Iterator[ViewItem]:
        return iter(self.items())

    @overload
    def __getitem__(self, at: int) -> ViewItem: ...
    @overload
    def __getitem__(self, at: slice) -> ViewBatch: ...
    def __getitem__(self, at: int | slice) -> ViewItem | ViewBatch:
        if isinstance(at, slice):
            return self.part(at)
        return self._make(self.numbers_B[[at]])[0]


def rows_of(items: Sequence[ViewItem]) -> NDArray[np.int64]:
    """Where a store of rendered views has them, int64 [B]; -1 of views that are never stored."""
    if isinstance(items, ViewBatch):
        return np.full(len(items), -1) if items.rows_B is None else items.rows_B
    return np.array([item.row for item in items], np.int64)


def targets_of(items: Sequence[ViewItem]) -> NDArray[np.int64]:
    """The callers' own numbers of them, int64 [B]."""
    return items.numbers_B if isinstance(items, ViewBatch) else np.array([item.target for item in items], np.int64)


def chosen(items: Sequence[ViewItem], positions: Sequence[int]) -> list[ViewItem]:
    """Those that stand at these positions; no other one is made."""
    if isinstance(items, ViewBatch):
        return items.part(np.array(positions, np.int64)).items() if positions else []
    return [items[at] for at in positions]
