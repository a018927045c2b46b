"""What a build takes from a store before it computes, and gives to it after: rows of its recipe, whoever paid for them.

Never computes a row. Run: softlabel cache build DATA -o t.h5 --store URL
N samples, R rows = (sample, view).
"""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache import CacheReader, Manifest, SegmentedWriter, durable
from cache import manifest as ids
from cache.adopt import copy_rows
from cache.errors import CacheDamaged, CacheError, CacheMismatch, printable
from cache.rows import FeatureShapes, Pair
from cache.store import Entry, ObjectRefused, Pushed, Store, StoreError
from pipeline.wanted import Wanted

log = logging.getLogger(__name__)

_FOLDER_SUFFIX = ".from-store"


class StoreOfRecipe:
    """The objects of one recipe in a store, as they were when the build began."""

    def __init__(self, store: Store, manifest: Manifest, features: FeatureShapes, *, may_make: bool) -> None:
        """StoreError where it cannot be asked; a folder that is not there is an empty store, if one `may_make` it."""
        self._store = store
        self._rows: dict[str, NDArray[np.bytes_]] = {}
        if may_make and not store.is_there:
            log.warning("there is no folder %s yet: it is made at the end, with all that is computed", store.address)
            self._entries = list[Entry]()
            return
        listed = store.entries(manifest.recipe_id)
        self._entries = [entry for entry in listed if dict(entry.features) == features]
        if len(self._entries) < len(listed):
            log.info(
                "%s: %d of %d caches of this recipe have other features (--embedding, --no-embedding): left out",
                store.address, len(listed) - len(self._entries), len(listed),
            )  # fmt: skip

    def pull_whole(self, out: Path, wanted: Wanted) -> int:
        """Bring the object that has exactly the wanted rows to `out`, unless that stands; its rows, 0 without one."""
        if out.exists() or not self._entries:
            return 0
        question = _cache_id(self._entries[0].recipe_id, wanted)
        for entry in [entry for entry in self._entries if entry.cache_id == question]:
            if self._pull(entry, out):
                log.info("%s rows from %s (%s)", f"{entry.n_rows:,}", self._store.address, _shown(entry))
                return entry.n_rows
        return 0

    def rows_there(self, wanted: Wanted) -> set[Pair]:
        """The wanted rows that the store has."""
        pairs = sorted(_pairs(wanted))
        there = np.zeros(len(pairs), bool)
        for _, rows in self._usable():
            there |= np.isin(_codes_of_pairs(pairs), rows)
        return {pairs[at] for at in np.flatnonzero(there).tolist()}

    def pull_parts(self, writer: SegmentedWriter, wanted: Wanted, *, names: bool) -> int:
        """Pull one object after another while one has wanted rows, the one with most of them first; rows taken."""
        pairs, n_taken = _pairs(wanted), 0
        missing = _codes_of_pairs(pairs)
        name_of = {sample.key: sample.name for sample, _ in wanted} if names else {}
        folder = writer.out.with_name(writer.out.name + _FOLDER_SUFFIX)
        while len(missing):
            found = [(int(np.isin(missing, rows).sum()), entry) for entry, rows in self._usable()]
            n_most, entry = max(found, key=lambda gain: gain[0], default=(0, None))
            if entry is None or not n_most:
                break
            folder.mkdir(exist_ok=True)
            pulled = folder / f"{entry.content_id}.h5"
            if not self._pull(entry, pulled):
                continue
            n_taken += (n_new := writer.adopt(pulled, pairs, names=name_of))
            log.info("%s rows from %s (%s)", f"{n_new:,}", self._store.address, _shown(entry))
            pulled.unlink()
            missing = missing[~np.isin(missing, self._rows[entry.content_id])]
        shutil.rmtree(folder, ignore_errors=True)
        return n_taken

    def _pull(self, entry: Entry, path: Path) -> bool:
        """Whether an object stands there now; one that is refused is told, and is none of the store's any more."""
        try:
            self._store.pull(entry, path)
        except (ObjectRefused, CacheDamaged, CacheMismatch) as error:
            self._leave_out(entry, error)
            return False
        return True

    def publish(self, built: Path) -> Pushed | None:
        """Push the rows that no object of the store had when the build began; None where it had all of them.

        StoreError, with the line that tries again, where they could not be pushed: `built` is complete all the same.
        """
        try:
            return self._push_new(built)
        except StoreError as error:
            words = shlex.join(["softlabel", "cache", "push", str(built), str(self._store.address)])
            raise StoreError(f"{built} is complete, but its new rows are not shared: {error}\nTry: {words}") from error

    def _push_new(self, built: Path) -> Pushed | None:
        with CacheReader(built, memory_map=False) as reader:
            if any(entry.cache_id == reader.cache_id for entry in self._entries):
                return None
            codes = _codes(reader.keys, reader.first_row, reader.view)
            known = np.zeros(len(codes), bool)
            for _, rows in self._usable():
                known |= np.isin(codes, rows)
            if known.all():
                return None
            if not known.any():
                return self._store.push(built)
            part = durable.temp_name(built)
            try:
                copy_rows(part, reader, np.flatnonzero(~known), None)
                return self._store.push(part)
            finally:
                part.unlink(missing_ok=True)

    def _usable(self) -> list[tuple[Entry, NDArray[np.bytes_]]]:
        """Of each object one code a row, from its small tables alone; one with other tables is left out from now on."""
        for entry in list(self._entries):
            try:
                if entry.content_id not in self._rows:
                    tables = self._store.row_tables(entry)
                    self._rows[entry.content_id] = _codes(tables.key, tables.first_row, tables.view)
            except ObjectRefused as error:
                self._leave_out(entry, error)
        return [(entry, self._rows[entry.content_id]) for entry in self._entries]

    def _leave_out(self, entry: Entry, error: CacheError) -> None:
        log.warning("%s: going on without it", error)
        self._entries.remove(entry)


def _pairs(wanted: Wanted) -> set[Pair]:
    return {(sample.key, view) for sample, views in wanted for view in views}


def _cache_id(recipe_id: str, wanted: Wanted) -> str:
    """That of a cache of exactly these rows."""
    key = np.frombuffer(b"".join(sample.key for sample, _ in wanted), np.uint8).reshape(-1, 16)
    counts = [len(views) for _, views in wanted]
    view = np.array([view for _, views in wanted for view in views], "<u2")
    return ids.cache_id(recipe_id, key, np.cumsum([0, *counts]).astype("<u8"), view)


def _codes(key: np.ndarray, first_row: np.ndarray, view: np.ndarray) -> NDArray[np.bytes_]:
    """18 bytes a row, (R,): its key, then its view; numpy compares them to the last byte, as all are as long."""
    first = first_row.astype(np.int64)
    key_R = np.repeat(key, first[1:] - first[:-1], axis=0)
    view_R = view.astype(">u2").view(np.uint8).reshape(-1, 2)
    return np.ascontiguousarray(np.concatenate([key_R, view_R], axis=1)).view("S18").ravel()


def _codes_of_pairs(pairs: Collection[Pair]) -> NDArray[np.bytes_]:
    return np.array([key + view.to_bytes(2, "big") for key, view in pairs], "S18")


def _shown(entry: Entry) -> str:
    return f"{entry.content_id[:12]}, {printable(entry.teacher)}"
