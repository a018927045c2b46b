"""Samples as columns: some 50 bytes each instead of some 500, for data sets that objects would not fit into memory.

A `SampleTable` is a sequence of `Sample`s that makes each one when it is asked for; the functions here do with columns
what they do with any other sequence, one sample at a time. Reads no file.

Legend: N samples, M chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from data.samples import Sample

_KEY_BYTES = 16
_NO_LABEL = -1


class Texts(Sequence[str]):
    """Many texts as one array of bytes and their ends; surrogate escapes keep file names that are not UTF-8."""

    def __init__(self, encoded: NDArray[np.uint8], ends: NDArray[np.unsignedinteger]) -> None:
        """uint8 bytes of all of them, and where each one ends, (N,)."""
        self._encoded, self._ends = encoded, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Those of some texts."""
        encoded, ends = bytearray(), list[int]()
        for text in texts:
            encoded += text.encode("utf-8", "surrogateescape")
            ends.append(len(encoded))
        is_narrow = len(encoded) < 1 << 32
        return cls(np.frombuffer(encoded, np.uint8), np.array(ends, np.uint32 if is_narrow else np.uint64))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        start = int(self._ends[at - 1]) if at else 0
        return self._encoded[start : int(self._ends[at])].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False, kw_only=True)
class Categories:
    """A few texts that stand for many: which of them each sample has."""

    names: tuple[str, ...]
    code_N: NDArray[np.signedinteger]
    """Place of each sample's text in `names`, (N,); -1 where it has none."""

    @classmethod
    def of(cls, texts: Iterable[str | None]) -> Categories:
        """Those of some texts, in the order in which they first come."""
        number: dict[str, int] = {}
        codes = [_NO_LABEL if text is None else number.setdefault(text, len(number)) for text in texts]
        return cls(names=tuple(number), code_N=np.array(codes, np.int16 if len(number) < 1 << 15 else np.int32))


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleColumns:
    """What a table's samples are made of; nothing of it is copied when some of them are chosen."""

    key: NDArray[np.uint8]
    """Content keys, uint8 (N,16)."""
    name: Sequence[str]
    """Paths relative to the data folder."""
    path: Sequence[str] | str
    """Where each file lies; or what stands before the names of all of them."""
    split: Categories
    labels: Mapping[str, Categories]
    """Task -> class of each sample."""
    group: Sequence[str] | None = None
    """What each belongs to; None where all belong to nothing but themselves."""

    def sample(self, at: int) -> Sample:
        """One sample by its place."""
        name = self.name[at]
        labels = {task: one.names[code] for task, one in self.labels.items() if (code := int(one.code_N[at])) >= 0}
        return Sample(
            self.key[at].tobytes(), self.path + name if isinstance(self.path, str) else self.path[at], name,
            self.split.names[int(self.split.code_N[at])], labels, self.group[at] if self.group else "",
        )  # fmt: skip


class SampleTable(Sequence[Sample]):
    """Samples by their places in columns, all of them or some; a slice is a table of the same columns."""

    def __init__(self, columns: SampleColumns, chosen_M: NDArray[np.integer] | None = None) -> None:
        self._columns, self._chosen_M = columns, chosen_M

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> SampleTable:
        """The same samples as columns."""
        tasks = dict.fromkeys(task for sample in samples for task in sample.labels)
        prefix = _common_prefix(samples)
        has_groups = any(sample.group for sample in samples)
        return cls(SampleColumns(
            key=np.frombuffer(b"".join(sample.key for sample in samples), np.uint8).reshape(-1, _KEY_BYTES),
            name=Texts.of(sample.name for sample in samples),
            path=Texts.of(sample.path for sample in samples) if prefix is None else prefix,
            split=Categories.of(sample.split for sample in samples),
            labels={task: Categories.of(sample.labels.get(task) for sample in samples) for task in tasks},
            group=Texts.of(sample.group for sample in samples) if has_groups else None,
        ))  # fmt: skip

    def __len__(self) -> int:
        return len(self._columns.key if self._chosen_M is None else self._chosen_M)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> SampleTable: ...
    def __getitem__(self, at: int | slice) -> Sample | SampleTable:
        if isinstance(at, slice):
            return self.chosen(np.arange(len(self))[at])
        at = range(len(self))[at]
        return self._columns.sample(at if self._chosen_M is None else int(self._chosen_M[at]))

    def __iter__(self) -> Iterator[Sample]:
        return (self[at] for at in range(len(self)))

    def chosen(self, at_M: NDArray[np.integer]) -> SampleTable:
        """Some of the samples, by their numbers; of the same columns."""
        places = at_M if self._chosen_M is None else self._chosen_M[at_M]
        return SampleTable(self._columns, places.astype(np.int32 if len(self._columns.key) < 1 << 31 else np.int64))

    @property
    def keys(self) -> NDArray[np.uint8]:
        """Content keys, uint8 (N,16)."""
        return self._columns.key if self._chosen_M is None else self._columns.key[self._chosen_M]

    def labels_in(self, task: str) -> Categories:
        """The class of each sample in a task."""
        found = self._columns.labels.get(task)
        if found is None:
            return Categories(names=(), code_N=np.full(len(self), _NO_LABEL, np.int16))
        return found if self._chosen_M is None else Categories(names=found.names, code_N=found.code_N[self._chosen_M])


def take(samples: Sequence[Sample], at_M: NDArray[np.integer]) -> Sequence[Sample]:
    """Some of the samples, by their numbers: of a table a table, else a list."""
    if isinstance(samples, SampleTable):
        return samples.chosen(at_M)
    return [samples[at] for at in at_M.tolist()]


def keys_of(samples: Sequence[Sample]) -> NDArray[np.uint8]:
    """Content keys, uint8 (N,16)."""
    if isinstance(samples, SampleTable):
        return samples.keys
    return np.frombuffer(b"".join([sample.key for sample in samples]), np.uint8).reshape(-1, _KEY_BYTES)


def classes_present(samples: Sequence[Sample], task: str) -> set[str]:
    """The classes that samples have in a task."""
    if isinstance(samples, SampleTable):
        found = samples.labels_in(task)
        return {found.names[code] for code in np.unique(found.code_N).tolist() if code != _NO_LABEL}
    return {sample.labels[task] for sample in samples if task in sample.labels}


def class_numbers(samples: Sequence[Sample], task: str, classes: Sequence[str]) -> NDArray[np.int64]:
    """Which of `classes` each sample has in a task, int64 (N,); -1 where it has none of them."""
    number = {name: at for at, name in enumerate(classes)}
    if isinstance(samples, SampleTable):
        found = samples.labels_in(task)
        # The code -1 takes the last one.
        return np.array([*(number.get(name, _NO_LABEL) for name in found.names), _NO_LABEL], np.int64)[found.code_N]
    numbers = (number.get(sample.labels[task], _NO_LABEL) if task in sample.labels else _NO_LABEL for sample in samples)
    return np.fromiter(numbers, np.int64, len(samples))


def _common_prefix(samples: Sequence[Sample]) -> str | None:
    """What stands before the name of each in its path; None where that is not the same."""
    if not samples:
        return ""
    prefix = samples[0].path[: max(0, len(samples[0].path) - len(samples[0].name))]
    return prefix if all(sample.path == prefix + sample.name for sample in samples) else None
