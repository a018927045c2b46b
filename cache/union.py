"""Read several sealed caches of one recipe as one: the cache that `cache.combine` would merge, without writing it.

Holds the merged small tables, and of each row where it stands; rows are read from their own files. Never copies,
repairs or averages a row. Run: `softlabel train DATA A.h5 B.h5 -o RUN`

Legend: R rows = (sample, view) of the union, M asked for, S sources.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cache.access import RowSource, Tables
from cache.errors import CacheDamaged, CacheMismatch
from cache.layout import Dims, is_big
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.rows import EMBEDDING
from cache.survey import (
    MERGED_FROM,
    Plan,
    Survey,
    check_agreement,
    check_recipes,
    merged_provenance,
    must_agree,
    planned,
    shared_features,
)
from cache.verify import Block

log = logging.getLogger(__name__)

_N_NAMED = 3
"""Files that a message lists: an array of jobs may have left hundreds."""


def open_caches(paths: Sequence[str | Path], *, memory_map: bool = True) -> CacheReader:
    """One cache, or the union of several of one recipe; a file that is named twice counts once.

    CacheMismatch where they are of other recipes, or disagree in a row that several of them have.
    """
    paths = [paths] if isinstance(paths, str) else paths  # which is a sequence of its letters, too
    once: dict[str, str | Path] = {}
    for path in paths:
        if os.path.realpath(path) in once:
            log.info("notice   %s is named twice, and counts once", path)
        once.setdefault(os.path.realpath(path), path)
    kept = list(once.values())
    if not kept:
        raise CacheMismatch("no cache to read: name one or more")
    if len(kept) == 1:
        return CacheReader(kept[0], memory_map=memory_map)
    return CacheUnion(kept, memory_map=memory_map)


class CacheUnion(CacheReader):
    """Several caches of one recipe, which answer as the file that `merge` would make of them: the first one wins.

    Where some have embeddings and others none, it has none, and answers as a merge of files without any.
    Its ids are those of that file; its seal follows from the seals of the files and their order. `path` names all of
    them, for messages.
    """

    def __init__(self, paths: Sequence[str | Path], *, memory_map: bool = True) -> None:
        self._set_sources(tuple(CacheReader(path, memory_map=memory_map) for path in paths))
        surveys, plan = self._survey()
        self._union = _joined(self._sources, surveys, plan)
        self._check_agreement(surveys, plan)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Each of the files, in order."""
        return tuple(source.path for source in self._sources)

    @property
    def shares(self) -> tuple[tuple[Path, int, int], ...]:
        """Each of the files in order, with its rows, and how many of them stand in an earlier one, too."""
        own = self._union[1].n_taken
        return tuple((one.path, one.n_rows, one.n_rows - n) for one, n in zip(self._sources, own, strict=True))

    @property
    def without_embeddings(self) -> tuple[Path, ...]:
        """The files without embeddings, where others have some, which are left out."""
        without = tuple(source.path for source in self._sources if EMBEDDING not in source.features)
        return without if len(without) < len(self._sources) else ()

    @property
    def seal(self) -> bytes:
        """Which files these are, in which order; 32 bytes."""
        digest = hashlib.sha256(b"softlabel union 1\0")
        for source in self._sources:
            digest.update(source.seal)
        return digest.digest()

    def verify(self) -> None:
        """Compare every byte of every file with its checksum; CacheDamaged names files and blocks."""
        _refuse_damaged(self._sources, None)

    def verify_objects(self, names: Iterable[str]) -> None:
        """The same for some big objects only."""
        _refuse_damaged(self._sources, list(names))

    def close(self) -> None:
        """Let go of the files; a later row method opens them again."""
        for source in self._sources:
            source.close()

    def __repr__(self) -> str:
        return f"CacheUnion({list(map(str, self.paths))}, {self.n_rows:,} rows)"

    def __getstate__(self) -> tuple[Any, ...]:
        return self._sources

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._set_sources(state)

    def _set_sources(self, sources: tuple[CacheReader, ...]) -> None:
        self._sources = sources
        named = [str(source.path) for source in sources]
        if len(named) > _N_NAMED:
            named[_N_NAMED - 1 :] = [f"{len(named) - _N_NAMED + 1} more files"]
        self.path = Path(f"the union of {', '.join(named[:-1])} and {named[-1]}")

    def _check_agreement(self, surveys: Sequence[Survey], plan: Plan) -> None:
        """Compare the rows that several files have, as `merge` does."""
        for source, survey, targets, is_first in zip(
            self._sources, surveys, plan.target_rows, plan.is_first, strict=True
        ):
            shared = np.flatnonzero(~is_first)
            if not len(shared):
                continue
            for name, spec in filter(lambda item: must_agree(item[0]), self.dims.specs().items()):
                for stretch in spec.stretches(len(shared)):
                    part = shared[stretch]
                    try:
                        check_agreement(
                            name, source.read_object(name, part), self.read_object(name, targets[part]), survey
                        )
                    except CacheMismatch:
                        self.verify_objects([name])  # a damaged row is no other answer
                        raise

    def _survey(self) -> tuple[list[Survey], Plan]:
        surveys = [Survey.of(source.path, source) for source in self._sources]
        check_recipes(surveys)
        return surveys, planned(surveys)

    @cached_property
    def _union(self) -> tuple["_UnionTables", "UnionRows"]:
        return _joined(self._sources, *self._survey())

    @property
    def _tables(self) -> Tables:
        return self._union[0]

    @property
    def _rows_file(self) -> RowSource:
        return self._union[1]


@dataclass(frozen=True, eq=False)
class _UnionTables:
    manifest: Manifest
    dims: Dims
    small: dict[str, np.ndarray]


class UnionRows:
    """Gathers rows of the union from the files that they stand in."""

    def __init__(self, sources: Sequence[CacheReader], plan: Plan, dims: Dims) -> None:
        self._sources, self._specs, self._names = sources, dims.specs(), plan.names
        self._source_R = np.empty(dims.n_rows, np.uint16 if len(sources) < 1 << 16 else np.int32)
        self._local_R = np.empty(dims.n_rows, np.uint32 if max(source.n_rows for source in sources) < 1 << 32 else int)
        for number, (targets, is_first) in enumerate(zip(plan.target_rows, plan.is_first, strict=True)):
            self._source_R[targets[is_first]] = number
            self._local_R[targets[is_first]] = np.flatnonzero(is_first)

    @property
    def n_taken(self) -> list[int]:
        """How many rows come from each of the files."""
        return np.bincount(self._source_R, minlength=len(self._sources)).tolist()

    def take(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Fresh, writable copies of rows of a big object, or of names, as `RowFile.take`."""
        if name == "samples/name":
            assert self._names is not None
            return self._names[rows].copy()
        source_M, local_M = self._source_R[rows], self._local_R[rows].astype(np.int64)
        dtype, shape = self._specs[name]
        values = np.empty((*source_M.shape, *shape[1:]), dtype)
        for number in np.unique(source_M).tolist():
            mine = source_M == number
            values[mine] = self._sources[number].read_object(name, local_M[mine])
        return values

    def damaged_blocks(self, names: Iterable[str] | None) -> list[Block]:
        """Those of all files: the object's name follows the file's, entries are counted within the file."""
        asked = None if names is None else list(names)
        return [
            (f"{source.path}: {name}", first, last)
            for source in self._sources
            for name, first, last in source.damaged_blocks(asked)
        ]

    def refuse_not_finite(self, names: Iterable[str] | None) -> None:
        """In no file may a number be NaN or infinite."""
        asked = None if names is None else list(names)
        for source in self._sources:
            source.refuse_not_finite(asked)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The bytes of a big object in order, as in the merged file."""
        assert is_big(name)
        for part in self._specs[name].stretches():
            yield self.take(name, part).reshape(-1).view("u1").data

    def close(self) -> None:
        """Let go of the files."""
        for source in self._sources:
            source.close()


def _joined(sources: Sequence[CacheReader], surveys: Sequence[Survey], plan: Plan) -> tuple[_UnionTables, UnionRows]:
    provenance = {**merged_provenance(surveys, plan), MERGED_FROM: len(surveys)}
    manifest = Manifest(surveys[0].manifest.identity, provenance)
    dims = plan.dims(replace(surveys[0].dims, features=shared_features(surveys)), manifest)
    small = {"samples/key": plan.key, "samples/first_row": plan.first_row, "rows/view": plan.view}
    if plan.names is not None:
        small["samples/name"] = plan.names
    for table in small.values():
        table.flags.writeable = False
    return _UnionTables(manifest, dims, small), UnionRows(sources, plan, dims)


def _refuse_damaged(sources: Sequence[CacheReader], names: list[str] | None) -> None:
    """Verify each file, and tell of all that are damaged in one error."""
    found: list[str] = []
    for source in sources:
        try:
            if names is None:
                source.verify()
            else:
                source.verify_objects(names)
        except CacheDamaged as error:
            found.append(str(error))
    if found:
        raise CacheDamaged("\n".join(found))
