"""The teacher's answers that a run learns from, in memory where they fit, so that a batch of them costs microseconds.

Computes no loss. R rows of the cache, B batch, K columns of all tasks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.targets import TeacherTargets

_KEPT_BYTES = 256_000_000
"""Of raw logits: 1,000,000 images with 8 views and 8 classes. More are read from the file, batch by batch."""


class SoftTargets:
    """Raw logits by row of the cache; `target` is that of the settings: `view`, or the `mean` of an image's views."""

    def __init__(self, targets: TeacherTargets, target: str) -> None:
        self._targets, self._is_mean = targets, target == "mean"
        self._kept: NDArray[np.float32] | None = None

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of some rows, float32 [B, K]."""
        if self._kept is None and self._n_bytes <= _KEPT_BYTES:
            self._kept = self._read(self._every())
        if self._kept is None:
            return self._read(rows)
        return self._kept[self._targets.reader.owners(rows) if self._is_mean else rows]

    @property
    def _n_bytes(self) -> int:
        """What all rows take, which are read for means as well."""
        return self._targets.reader.n_rows * len(self._targets.tasks.outputs) * 4

    def _every(self) -> NDArray[np.int64]:
        """The rows that are kept: all, or of means one of each image."""
        reader = self._targets.reader
        return reader.first_row[:-1].astype(np.int64) if self._is_mean else np.arange(reader.n_rows)

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._targets.mean_logits(rows) if self._is_mean else self._targets.teacher_logits(rows)
