"""Samples joined with what the teacher said of them: by content key and class name, never by position or path.

Knows neither models nor losses. N samples, R rows of the cache, V views of a sample, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cache import CacheReader
from cache.errors import CacheMismatch
from data.loaders import ViewItem, read_sample
from data.samples import FOLDER_TASK, Sample
from data.views import COLUMNS, ViewPolicy, render, view_order, witness, witness_tolerance


@dataclass(frozen=True)
class TeacherTargets:
    """Some samples with their rows in a cache; refuses to exist when any of them is missing there."""

    reader: CacheReader
    samples: Sequence[Sample]
    index_N: NDArray[np.int64]
    """Number of each sample in the cache."""
    labels_N: NDArray[np.int64]
    """Class of each sample, as a column of the cache's logits."""

    @classmethod
    def join(cls, reader: CacheReader, samples: Sequence[Sample], data: str) -> TeacherTargets:
        """Look every sample up; CacheMismatch says how many are missing and what to run."""
        index_N = reader.find([sample.key for sample in samples])
        if (missing := int((index_N < 0).sum())) == len(samples):
            raise CacheMismatch(
                f"{reader.path} knows none of the {len(samples):,} images of {data}: this is another data set, or your "
                f"copy of the images has other bytes (re-encoded or resized?)"
            )
        if missing:
            first = samples[int(np.argmin(index_N))].name
            raise CacheMismatch(
                f"{reader.path} lacks {missing:,} of {len(samples):,} images (first: {first}): "
                f"run `softlabel cache build {data} -o {reader.path}` with the settings it was built with"
            )
        return cls(reader, samples, index_N, _labels(reader, samples))

    @property
    def geometry(self) -> str:
        """How the cache's views become a square."""
        return view_policy(self.reader).geometry

    @property
    def n_views_N(self) -> NDArray[np.int64]:
        """How many views the cache has of each sample, int64 [N]."""
        first_row = self.reader.first_row.astype(np.int64)
        return first_row[self.index_N + 1] - first_row[self.index_N]

    def clean_rows(self) -> NDArray[np.int64]:
        """Rows of the clean views, int64 [N]; CacheMismatch where one is missing."""
        rows = self.reader.row(self.index_N, np.zeros(len(self.samples), np.int64))
        if (rows < 0).any():
            raise CacheMismatch(f"{self.reader.path} lacks the clean view of {int((rows < 0).sum()):,} images")
        return rows

    def epoch_rows(self, epoch: int, run_seed: int) -> NDArray[np.int64]:
        """The row that each sample shows in an epoch, int64 [N]: each view once in V epochs, in random order."""
        first = self.reader.first_row[self.index_N].astype(np.int64)
        offsets = [
            _order(sample.key, int(views), epoch // int(views), run_seed)[epoch % int(views)]
            for sample, views in zip(self.samples, self.n_views_N, strict=True)
        ]
        return first + np.array(offsets, np.int64)

    def items(self, rows: NDArray[np.int64]) -> list[ViewItem]:
        """What the loader needs for one row of each sample; an item's target is the sample's number here."""
        params = self.reader.params(rows)
        return [ViewItem(sample, row, i) for i, (sample, row) in enumerate(zip(self.samples, params, strict=True))]

    def teacher_logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Raw logits, float32 [len(rows), C]."""
        return self.reader.logits(rows, FOLDER_TASK).astype(np.float32)

    def check_witness(self, size_px: int, seed: int, n_checked: int = 32) -> None:
        """Render some views at the student's size and compare them with what the teacher saw; CacheMismatch if not."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self.samples))[:n_checked])
        rows = self.epoch_rows(0, seed)[chosen]
        expected = self.reader.witness(rows).astype(int)
        tolerance = witness_tolerance(size_px)
        for i, row, seen in zip(chosen, self.reader.params(rows), expected, strict=True):
            sample = self.samples[i]
            found = witness(render(read_sample(sample), row, size_px, self.geometry)).astype(int)
            if (worst := int(np.abs(found - seen).max())) > tolerance:
                raise CacheMismatch(
                    f"{sample.path} renders to another view than the teacher saw: its quadrant means differ by {worst} "
                    f"levels, expected at most {tolerance}. The cache comes from other rendering code: build it anew"
                )


_order = lru_cache(maxsize=200_000)(view_order)
"""One permutation serves V epochs of a run."""


def view_policy(reader: CacheReader) -> ViewPolicy:
    """The view policy of a cache; CacheMismatch where this version cannot render it."""
    identity = reader.manifest.identity
    views = {name: value for name, value in identity.get("views", {}).items() if name != "seed"}
    try:
        if tuple(reader.manifest.view_columns) != COLUMNS:
            raise ValueError(f"view columns {', '.join(reader.manifest.view_columns)}")
        return ViewPolicy.from_identity(views)
    except (ValueError, KeyError, TypeError) as error:
        raise CacheMismatch(f"{reader.path}: views that this version of softlabel cannot render: {error}") from error


def _labels(reader: CacheReader, samples: Sequence[Sample]) -> NDArray[np.int64]:
    if FOLDER_TASK not in reader.tasks:
        raise CacheMismatch(f"{reader.path} has the tasks {', '.join(reader.tasks)}; expected '{FOLDER_TASK}'")
    classes = reader.tasks[FOLDER_TASK]
    column = {name: i for i, name in enumerate(classes)}
    unknown = sorted({sample.labels[FOLDER_TASK] for sample in samples} - set(classes))
    if unknown:
        raise CacheMismatch(
            f"{reader.path} does not know the classes {', '.join(unknown)}; it was built for {', '.join(classes)}"
        )
    return np.array([column[sample.labels[FOLDER_TASK]] for sample in samples], np.int64)
