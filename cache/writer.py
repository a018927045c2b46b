"""Write a cache as sealed segments that survive a kill, and merge them into one file at the end.

Never computes a row, never decides which are missing (it says which are done), never deletes what it did not write.
Run: `softlabel cache build DATA -o t.h5`, and the same again to resume.

Legend: R rows = (sample, view), V views of one sample, P view columns, C classes.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cache import durable
from cache.combine import merge
from cache.errors import CacheDamaged, CacheError, CacheMismatch, ManifestError
from cache.fill import write_table
from cache.layout import Table
from cache.manifest import Manifest, differences, parse_strict, plain_object
from cache.reader import CacheReader
from cache.rows import FeatureShapes, Pair, RowBuffer, checked_rows

log = logging.getLogger(__name__)

SEGMENT_SUFFIX = ".h5"
DAMAGED_SUFFIX = ".damaged"
PLAN_NAME = "plan.json"
LOCK_NAME = "lock"


class SegmentedWriter:
    """The one writer of `out` while its context is open; rows may come in any order, over any number of runs.

    Sealed segments stand in `OUT.parts/`, written every `segment_rows` rows or `segment_s` seconds. An existing `out`
    of the same recipe is extended. Leaving by an exception seals nothing and keeps what is sealed; else it seals.
    """

    def __init__(
        self,
        out: str | Path,
        manifest: Manifest,
        compute_setting: Mapping[str, Any],
        *,
        segment_rows: int = 256,
        segment_s: float = 30.0,
    ) -> None:
        if segment_rows < 1 or not segment_s >= 0:
            raise CacheMismatch(f"segment_rows is {segment_rows}, segment_s {segment_s}: expected >= 1 and >= 0")
        self.out, self.manifest = Path(out), manifest
        self.parts = self.out.with_name(self.out.name + ".parts")
        self.segment_rows, self.segment_s = segment_rows, segment_s
        self._setting = plain_object(dict(compute_setting), "compute_setting", floats=True)
        self._lock: durable.Lock | None = None
        self._owns_parts = False
        self._buffer = RowBuffer()
        self._done: set[Pair] = set()
        self._in_out: set[Pair] = set()
        self._features: FeatureShapes | None = None
        self._last_seal_s = time.monotonic()

    @property
    def compute_setting(self) -> dict[str, Any]:
        """The setting to compute with: on resume that of the parts, which is not always the one given."""
        return dict(self._setting)

    @property
    def done(self) -> AbstractSet[Pair]:
        """Every (key, view) that stands sealed, in `out` or a part; buffered rows are not done. Seals add to it."""
        return self._done

    def __enter__(self) -> "SegmentedWriter":
        self._check_out()
        self._lock = durable.Lock.acquire(self.parts / LOCK_NAME)
        try:
            for temp in self.parts.glob("*" + durable.TEMP_SUFFIX):
                durable.remove(temp)
            self._take_up_plan()
            self._take_up_rows()
        except BaseException:
            self._leave()
            raise
        self._last_seal_s = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._lock is not None:
                self.seal()
        finally:
            self._leave()

    def add(
        self,
        key: bytes,
        views: np.ndarray,
        params: np.ndarray,
        witness: np.ndarray,
        logits: Mapping[str, np.ndarray],
        features: Mapping[str, np.ndarray] | None = None,
        name: str | None = None,
    ) -> None:
        """Add some views of one sample: key 16 bytes, views (V,), params (V,P), witness uint8 (V,12).

        logits: task -> (V,C); features: name -> (V, ...), stored as float16, the same set in every call. Refuses a
        (key, view) that is done or buffered, shapes that do not fit the manifest, values not finite as stored.
        """
        self._check_open()
        sample = checked_rows(self.manifest, key, views, params, witness, logits, features or {}, name)
        self._check_features(sample.feature_shapes, f"sample {sample.key.hex()}")
        for pair in sample.pairs:
            if pair in self._done or pair in self._buffer.pairs:
                raise CacheMismatch(
                    f"view {pair[1]} of sample {pair[0].hex()} came before: leave out what is in `done`"
                )
        self._buffer.add(sample)
        if len(self._buffer) >= self.segment_rows or time.monotonic() - self._last_seal_s >= self.segment_s:
            self.seal()

    def seal(self) -> None:
        """Write the buffered rows, if any, as one sealed segment; when this returns they survive a power cut."""
        self._check_open()
        if len(self._buffer):
            table = self._buffer.table(list(self.manifest.tasks))
            final = self.parts / (_segment_id(table) + SEGMENT_SUFFIX)
            temp = durable.temp_name(final)
            try:
                write_table(temp, self.manifest, table)
                with durable.disk_errors(final, 4096):
                    durable.publish_new(temp, final)
            finally:
                with suppress(OSError):
                    temp.unlink(missing_ok=True)
            self._done.update(self._buffer.pairs)
            self._buffer = RowBuffer()
        self._last_seal_s = time.monotonic()

    def finish(self) -> CacheReader:
        """Seal, merge `out` and all parts into `out`, verify it, remove the parts and their folder, and open `out`."""
        self.seal()
        if not self._done:
            raise CacheMismatch(f"no rows for {self.out}: nothing was added")
        if self._in_out and not self.out.exists():
            raise CacheMismatch(f"{self.out} vanished during the build; its parts are kept: run the same command again")
        if self._done != self._in_out:
            sources = [self.out] if self.out.exists() else []
            merge([*sources, *self._segments()], self.out, replace=bool(sources), temp_folder=self.parts)
        reader = CacheReader(self.out)
        self._remove_parts()
        self._release()
        return reader

    def _check_open(self) -> None:
        if self._lock is None:
            raise CacheMismatch(f"the writer of {self.out} is not open: use it as `with SegmentedWriter(...) as w`")

    def _check_out(self) -> None:
        if not self.out.parent.is_dir():
            raise CacheMismatch(f"{self.out.parent} is not a folder: make it first, or choose another -o")
        if self.out.exists():
            self._check_recipe(CacheReader(self.out).manifest.identity, self.out, "choose another -o")

    def _check_recipe(self, identity: dict[str, Any], where: Path, remedy: str) -> None:
        if found := differences(identity, self.manifest.identity):
            lines = "\n  ".join(found)
            raise CacheMismatch(f"{where} is of another recipe (stored against wanted): {remedy}\n  {lines}")

    def _check_features(self, found: FeatureShapes, where: str) -> None:
        if self._features is None:
            self._features = found
        if found != self._features:
            raise CacheMismatch(f"{where} has the features {found}, the rows before it {self._features}")

    def _take_up_plan(self) -> None:
        """Read the plan of an earlier run, whose compute setting wins, or write this one's."""
        path = self.parts / PLAN_NAME
        remedy = f"choose another -o, or delete the folder {self.parts} to start over"
        if path.exists():
            try:
                plan = parse_strict(path.read_bytes())
                identity, setting = dict(plan["identity"]), dict(plan["compute_setting"])
            except (ManifestError, OSError, KeyError, TypeError, ValueError) as error:
                raise CacheDamaged(f"{path} is no plan of a cache build ({error}): {remedy}") from error
            self._check_recipe(identity, self.parts, remedy)
            if found := differences(setting, self._setting):
                log.warning("%s keeps the compute setting of its parts: %s", self.parts, "; ".join(found))
            self._setting = setting
        else:
            ours = {"recipe_id": self.manifest.recipe_id, "identity": self.manifest.identity}
            plan = {"format": 1, **ours, "compute_setting": self._setting}
            durable.write_atomic(path, json.dumps(plan, sort_keys=True, indent=1, allow_nan=False).encode())
        self._owns_parts = True

    def _take_up_rows(self) -> None:
        """Collect what is done, one verified file at a time; a damaged part is set aside, a damaged `out` refused."""
        if self.out.exists():
            self._in_out = self._pairs_of(self.out, "choose another -o")
        self._done |= self._in_out
        for part in self._segments():
            try:
                self._done |= self._pairs_of(part, f"remove it, or delete the folder {self.parts} to start over")
            except CacheDamaged as error:
                aside = durable.temp_name(part).with_suffix(DAMAGED_SUFFIX)
                part.rename(aside)
                log.warning("%s; renamed to %s, its rows will be computed again", error, aside.name)

    def _pairs_of(self, path: Path, remedy: str) -> set[Pair]:
        with CacheReader(path) as reader:
            self._check_recipe(reader.manifest.identity, path, remedy)
            reader.verify()
            self._check_features(reader.features, path.name)
            return reader.pairs()

    def _segments(self) -> list[Path]:
        return sorted(self.parts.glob("*" + SEGMENT_SUFFIX))

    def _remove_parts(self) -> None:
        """Remove the files that are ours; the lock and the folder last, while the lock is held."""
        ours = [*self._segments(), *self.parts.glob("*" + durable.TEMP_SUFFIX), *self.parts.glob("*" + DAMAGED_SUFFIX)]
        for path in [*ours, self.parts / PLAN_NAME, self.parts / LOCK_NAME]:
            with suppress(FileNotFoundError):
                durable.remove(path)
        try:
            self.parts.rmdir()
        except OSError as error:
            log.info("%s stays: %s", self.parts, error.strerror)

    def _leave(self) -> None:
        """Release the lock; parts without any segment go, for there is nothing to resume."""
        if self._lock is not None:
            if self._owns_parts and not self._segments() and not list(self.parts.glob("*" + DAMAGED_SUFFIX)):
                with suppress(CacheError, OSError):
                    self._remove_parts()
            self._release()

    def _release(self) -> None:
        # After the folder is gone another writer may already own a new one of that name: touch nothing from here on.
        if self._lock is not None:
            self._lock.release()
        self._lock, self._owns_parts = None, False


def _segment_id(table: Table) -> str:
    """Hex sha256 of keys and views: the same rows have the same name, whoever computed them."""
    digest = hashlib.sha256()
    for array in (table.key, table.first_row, table.view):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
