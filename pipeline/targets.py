"""Samples with what the teacher said of them: which row each shows in an epoch, its logits, and proof of the view.

Knows neither models nor losses, and not how samples and rows were matched (`pipeline.joining`).
N samples, R rows of the cache, V views of a sample, T tasks, C classes of one, K columns of all, S pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cache import CacheReader
from cache.errors import CacheMismatch
from data.sample_table import take
from data.samples import Sample
from data.view_batches import ViewBatch, ViewItem
from data.views import COLUMNS, WITNESS_LIMIT, ViewPolicy, view_orders, witness, witness_tolerance
from pipeline.tasks import UNLABELLED, Tasks

SEEN = "seen"
"""The feature, one scalar a row: 1 where the teacher, or the head that said the row, was fitted on the row's sample or
its group; 0 where not. Without it nobody knows."""


@dataclass(frozen=True)
class StoredTask:
    """Where a cache has the logits of a task."""

    name: str
    """What the cache calls it."""
    columns: tuple[int, ...]
    """Of its stored logits, the one of each class of ours."""


@dataclass(frozen=True)
class TeacherTargets:
    """Some samples, each with its place in a cache; made by `pipeline.joining.join`, which refuses missing ones."""

    reader: CacheReader
    samples: Sequence[Sample]
    index_N: NDArray[np.int64]
    """Number of each sample in the cache."""
    labels_NT: NDArray[np.int64]
    """Class of each sample in each task, counted within the task; UNLABELLED where it has none."""
    tasks: Tasks
    """Their classes in the order of the logits."""
    stored: Mapping[str, StoredTask]
    """Task -> where its logits are; absent where the cache does not know all its classes, and nobody asks for them."""

    @property
    def labels_N(self) -> NDArray[np.int64]:
        """Class of each sample in the one task there is."""
        assert len(self.tasks) == 1
        return self.labels_NT[:, 0]

    @property
    def geometry(self) -> str:
        """How the cache's views become a square."""
        return view_policy(self.reader).geometry

    @property
    def n_views_N(self) -> NDArray[np.int64]:
        """How many views the cache has of each sample, int64 [N]."""
        first_row = self.reader.first_row.view(np.int64)
        return first_row[self.index_N + 1] - first_row[self.index_N]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the one task there is."""
        return self.tasks[self.tasks.only]

    def subset(self, chosen: NDArray[np.int64]) -> TeacherTargets:
        """Some of the samples, by their numbers."""
        return replace(
            self, samples=take(self.samples, chosen), index_N=self.index_N[chosen], labels_NT=self.labels_NT[chosen]
        )

    def of_task(self, task: str) -> TeacherTargets:
        """One task alone, and the samples that have a label in it."""
        number = list(self.tasks).index(task)
        labelled = np.flatnonzero(self.labels_NT[:, number] != UNLABELLED)
        whole = self if len(labelled) == len(self.samples) else self.subset(labelled)
        labels_N1 = whole.labels_NT[:, number : number + 1]
        return replace(whole, labels_NT=labels_N1, tasks=Tasks({task: self.tasks[task]}))

    def used_views(self, n_views: int) -> NDArray[np.int64]:
        """How many views of each sample take part, int64 [N]: the first `n_views` by index, all for 0."""
        return np.minimum(self.n_views_N, n_views) if n_views else self.n_views_N

    def clean_rows(self) -> NDArray[np.int64]:
        """Rows of the clean views, int64 [N]; CacheMismatch where one is missing."""
        rows = self.reader.row(self.index_N, np.zeros(len(self.samples), np.int64))
        if n_missing := int((rows < 0).sum()):
            raise CacheMismatch(f"{self.reader.path} lacks the clean view of {n_missing:,} images")
        return rows

    def epoch_rows(
        self, epoch: int, run_seed: int, *, n_views: int = 0, sample_M: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The row that each draw of an epoch shows, int64 [M]: each view once in V epochs, in random order.

        `sample_M` says whose draws they are, each sample once if None; the j-th further draw of a sample shows the
        view of the j-th next epoch. `n_views` as in `used_views`.
        """
        turn_M = np.full(len(self.samples), epoch)
        if sample_M is None:
            sample_M = np.arange(len(self.samples))
        else:
            turn_M = epoch + times_before(sample_M)
        first_M = self.reader.first_row[self.index_N[sample_M]].astype(np.int64)
        views_M = self.used_views(n_views)[sample_M]
        return first_M + self._schedule.shown(sample_M, views_M, turn_M, run_seed)

    @cached_property
    def _schedule(self) -> Schedule:
        return Schedule(self.reader.keys[self.index_N])

    def items(self, rows_M: NDArray[np.int64], sample_M: NDArray[np.int64] | None = None) -> ViewBatch:
        """What the loader needs to show these rows; an item's target is its place among them.

        `sample_M` says whose rows they are; None is a row of each sample.
        """

        def make(chosen: NDArray[np.int64]) -> list[ViewItem]:
            owners = chosen if sample_M is None else sample_M[chosen]
            rows, params = rows_M[chosen], self.reader.params(rows_M[chosen])
            return [
                ViewItem(self.samples[owner], numbers, target, row) for owner, numbers, target, row
                in zip(owners.tolist(), params, chosen.tolist(), rows.tolist(), strict=True)
            ]  # fmt: skip

        return ViewBatch(np.arange(len(rows_M)), make, rows_M)

    def teacher_logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Raw logits, float32 [len(rows), K]."""
        parts = []
        for task in self.tasks:
            stored = self.stored[task]
            logits_RC = self.reader.logits(rows, stored.name)
            in_order = stored.columns == tuple(range(logits_RC.shape[1]))
            parts.append(logits_RC if in_order else logits_RC[:, list(stored.columns)])
        return (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)).astype(np.float32)

    def mean_logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Raw logits, averaged over all cached views of each row's sample, float32 [len(rows), K].

        The mean of logits is, up to a constant, the logarithm of the views' geometric mean: one target for every T,
        and the q of least summed KL(q || view). A mean of probabilities would depend on T, and be flatter where views
        are sure of different classes.
        """
        every, owner = self.all_rows(rows)
        starts = np.searchsorted(owner, np.arange(len(rows)))
        total = np.add.reduceat(self.teacher_logits(every).astype(np.float64), starts, axis=0)
        return (total / np.bincount(owner)[:, None]).astype(np.float32)

    def all_rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All V rows of each row's sample, and which of `rows` each is for: int64 [sum of V] both; at least one row."""
        sample = self.reader.owners(rows)
        first, last = (self.reader.first_row[sample + more].astype(np.int64) for more in (0, 1))
        owner = np.repeat(np.arange(len(rows)), last - first)
        return np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)]), owner

    def seen(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows are known to be of samples that what said them was fitted on, bool [len(rows)]."""
        if self.reader.features.get(SEEN) != ():
            return np.zeros(len(rows), bool)
        return np.asarray(self.reader.feature(rows, SEEN) > 0.5)

    def check_witness(self, rendered: Callable[[ViewBatch], Iterable[Tensor]], seed: int, n_checked: int = 32) -> None:
        """Have random views of random samples as training will, and compare them with what the teacher saw.

        Proves crop, flips, turns, colours and the join; not interpolation and decoder, which the identity names.
        """
        generator = np.random.default_rng(seed)
        chosen = generator.permutation(len(self.samples))[:n_checked]
        first_row = self.reader.first_row.view(np.int64)
        rows = generator.integers(first_row[self.index_N[chosen]], first_row[self.index_N[chosen] + 1])
        self.check_pixels(rendered(self.items(rows, chosen)), chosen, rows)

    def check_pixels(self, views: Iterable[Tensor], numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Compare views, uint8 [3, S, S] each, with what the teacher saw in these rows; `numbers` says whose they are.

        CacheMismatch names the image that differs most, where one differs by more than WITNESS_LIMIT, or more than a
        few (a tenth, but at least two) by more than the size allows.
        """
        said = [(witness(view), view.shape[-1]) for view in views]
        expected = self.reader.witness(rows).astype(int)
        away = [int(np.abs(one.astype(int) - told).max()) for (one, _), told in zip(said, expected, strict=True)]
        beyond = [n for n, (_, size_px) in zip(away, said, strict=True) if n > witness_tolerance(size_px)]
        worst = max(away, default=0)
        if worst > WITNESS_LIMIT or len(beyond) > max(2, len(away) // 10):
            raise CacheMismatch(
                f"{self.samples[numbers[away.index(worst)]].path} renders to another view than the teacher saw: its "
                f"quadrant means differ by {worst} levels, and those of {len(beyond)} of {len(away)} views by more "
                "than expected. The cache comes from other rendering code: build it anew"
            )


def times_before(sample_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each entry stands earlier in the array, int64 [M]."""
    order = np.argsort(sample_M, kind="stable")
    ordered = sample_M[order]
    times = np.empty(len(sample_M), np.int64)
    times[order] = np.arange(len(sample_M)) - np.searchsorted(ordered, ordered)
    return times


class Schedule:
    """Which view of a sample a run shows when; the order of one cycle serves V epochs."""

    def __init__(self, keys: NDArray[np.uint8]) -> None:
        self._keys = keys
        self._orders: dict[tuple[int, int, int], NDArray[np.uint16]] = {}

    def shown(
        self, sample_M: NDArray[np.int64], views_M: NDArray[np.int64], turn_M: NDArray[np.int64], run_seed: int
    ) -> NDArray[np.int64]:
        """Which of its first `views_M` views each draw shows when it is its sample's turn `turn_M`, int64 [M]."""
        shown_M, cycle_M = np.empty(len(sample_M), np.int64), turn_M // views_M
        kind_M = (cycle_M << 17) | views_M
        for kind in np.unique(kind_M).tolist():
            draws = np.flatnonzero(kind_M == kind)
            views, cycle = kind & 0x1FFFF, kind >> 17
            shown_M[draws] = self._entries(sample_M[draws], views, cycle, run_seed, turn_M[draws] % views)
        return shown_M

    def _entries(
        self, samples: NDArray[np.int64], views: int, cycle: int, run_seed: int, at: NDArray[np.int64]
    ) -> NDArray[np.uint16]:
        """Entry `at` of the order of each sample; the orders of all are kept where these are a good part of them."""
        kept = self._orders.get((views, cycle, run_seed))
        if kept is None:
            if len(samples) < len(self._keys) / _KEPT_SHARE:
                return view_orders(self._keys[samples], views, cycle, run_seed)[np.arange(len(samples)), at]
            kept = view_orders(self._keys, views, cycle, run_seed)
            while len(self._orders) >= _KEPT_CYCLES:
                del self._orders[next(iter(self._orders))]
            self._orders[views, cycle, run_seed] = kept
        return kept[samples, at]


_KEPT_SHARE, _KEPT_CYCLES = 4, 4
"""A quarter of the samples is a good part; of images drawn several times an epoch also later cycles are asked for."""


def read_by_training(reader: CacheReader, tasks: Collection[str]) -> list[str]:
    """The big objects of the file that stage two reads, by name; `tasks` as the cache calls them."""
    seen = [f"features/{SEEN}"] if SEEN in reader.features else []
    logits = [f"logits/{number}" for number, task in enumerate(reader.tasks) if task in tasks]
    return ["rows/params", "rows/witness", *logits, *seen]


def teacher_parameters(reader: CacheReader) -> int | None:
    """How many parameters the teacher of a cache has; None where the cache does not say."""
    found = reader.manifest.provenance.get("teacher_parameters")
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def view_policy(reader: CacheReader) -> ViewPolicy:
    """The view policy of a cache; CacheMismatch where this version cannot render it."""
    try:
        views = {name: value for name, value in reader.manifest.identity["views"].items() if name != "seed"}
        if tuple(reader.manifest.view_columns) != COLUMNS:
            raise ValueError(f"view columns {', '.join(reader.manifest.view_columns)}")
        return ViewPolicy.from_identity(views)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise CacheMismatch(f"{reader.path}: views that this version of softlabel cannot render: {error}") from error
