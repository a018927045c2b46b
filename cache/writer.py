"""Write a cache as sealed segments that survive a kill, and merge them into one file at the end.

Never computes a row, never decides which are missing (it says which are done), never deletes what it did not write.
Run: `softlabel cache build DATA -o t.h5`, and the same again to resume.

Legend: R rows = (sample, view), V views of one sample, P view columns, C classes.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cache import durable
from cache.adopt import copy_rows, rows_of
from cache.combine import merge_locked
from cache.errors import CacheDamaged, CacheError, CacheMismatch, CacheNewer, ManifestError
from cache.fill import write_table
from cache.manifest import FORMAT, Manifest, check_format, differences, parse_strict, plain_object
from cache.reader import CacheReader
from cache.recipes import apart
from cache.rows import FeatureShapes, Pair, RowBuffer, checked_rows, in_words
from cache.workspace import REUSED_PREFIX, SEGMENT_SUFFIX, Workspace

log = logging.getLogger(__name__)


class SegmentedWriter:
    """The one writer of `out` while its context is open; rows may come in any order, over any number of runs.

    Sealed segments stand in `OUT.parts/`, written every `segment_rows` rows or `segment_s` seconds. An existing `out`
    of the same recipe is extended. Leaving by an exception seals nothing and keeps what is sealed; else it seals.

    Several processes may compute for one `out`: member 0 is that writer. The others call `follow` with its `terms`,
    enter after it, add rows that it does not add, and leave before it calls `take_up` with their `sealed`.
    """

    def __init__(
        self,
        out: str | Path,
        manifest: Manifest,
        compute_setting: Mapping[str, Any],
        *,
        segment_rows: int = 256,
        segment_s: float = 30.0,
        member: int = 0,
    ) -> None:
        if segment_rows < 1 or not segment_s >= 0:
            raise CacheMismatch(f"segment_rows is {segment_rows}, segment_s {segment_s}: expected >= 1 and >= 0")
        self._workspace, self._member = Workspace(Path(out), member), member
        self.out, self.manifest = self._workspace.out, manifest
        self.segment_rows, self.segment_s = segment_rows, segment_s
        self._setting = plain_object(dict(compute_setting), "compute_setting", floats=True)
        self._buffer = RowBuffer()
        self._done: set[Pair] = set()
        self._in_out: set[Pair] = set()
        self._segments: set[Path] = set()
        self._features: FeatureShapes | None = None
        self._last_seal_s = time.monotonic()

    @property
    def parts(self) -> Path:
        """The folder of the sealed segments."""
        return self._workspace.folder

    @property
    def compute_setting(self) -> dict[str, Any]:
        """The setting to compute with: on resume that of the parts, which is not always the one given."""
        return dict(self._setting)

    @property
    def has_computed(self) -> bool:
        """Whether rows that were computed here stand in a part, to whose compute setting the others are bound."""
        return self._workspace.has_computed()

    @property
    def features(self) -> FeatureShapes | None:
        """Feature name -> shape of one row's value, as in the rows that stand or wait; None while there are none."""
        return None if self._features is None else dict(self._features)

    @property
    def done(self) -> AbstractSet[Pair]:
        """Every (key, view) that stands sealed, in `out` or a part; buffered rows are not done. Seals add to it."""
        return self._done

    @property
    def terms(self) -> dict[str, Any]:
        """What a member must have in common with this writer, in plain values; once this one is open."""
        provenance = self.manifest.provenance
        return {"setting": self._setting, "features": self._features, "identity": self.manifest.identity,
                "provenance": provenance}  # fmt: skip

    @property
    def sealed(self) -> list[str]:
        """The names of the segments in the folder that this writer sealed or took up."""
        return sorted(path.name for path in self._segments)

    def follow(self, terms: Mapping[str, Any]) -> None:
        """Of a member, before it enters: compute as the first one does; CacheMismatch where it would write others."""
        identity = terms["identity"]
        if found := apart(identity, self.manifest.identity, ("the first process", "this one"), "first against this"):
            raise CacheMismatch(
                f"the processes that write {self.out} are of different recipes{found.reason}: start all of them with "
                f"the same command, images and versions{found.fields}"
            )
        self.manifest = Manifest(identity, terms["provenance"])
        self._setting, self._features = dict(terms["setting"]), terms["features"]

    def take_up(self, names: Collection[str]) -> None:
        """Count in the segments that members sealed and left; CacheMismatch where one is gone."""
        for part in (self.parts / name for name in sorted(names)):
            if not part.exists():
                raise CacheMismatch(f"{part} vanished during the build: run the same command again")
            with CacheReader(part, memory_map=False) as reader:
                self._check_features(reader.features, part.name)
                self._done |= reader.pairs()
            self._segments.add(part)

    def __enter__(self) -> "SegmentedWriter":
        if not self._member:
            self._check_out()
        self._workspace.enter()
        if self._member:
            self._last_seal_s = time.monotonic()
            return self
        try:
            self._take_up_plan()
            self._take_up_rows()
        except BaseException:
            self._workspace.leave()
            raise
        self._last_seal_s = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._workspace.is_held:
                self.seal()
        finally:
            self._workspace.leave()

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
            name = _segment_id(table.key, table.first_row, table.view)
            self._publish(name, lambda temp: write_table(temp, self.manifest, table))
            self._done.update(self._buffer.pairs)
            self._buffer = RowBuffer()
        self._last_seal_s = time.monotonic()

    def adopt(self, source: str | Path, wanted: Collection[Pair], *, names: Mapping[bytes, str] | None = None) -> int:
        """Copy those wanted rows that are neither done nor buffered from another sealed cache; how many it had.

        They stand sealed in a segment when this returns. `names` (key -> name for people) replaces the source's own,
        and an empty one leaves them out. Nothing is copied of a source that is of another recipe, has other features,
        does not verify or is `out` itself: CacheError.
        """
        self._check_open()
        source = Path(source)
        if os.path.realpath(source) == os.path.realpath(self.out):
            raise CacheMismatch(f"{source} is the output itself, whose rows stay anyway: name other caches to reuse")
        missing = [pair for pair in wanted if pair not in self._done and pair not in self._buffer.pairs]
        with CacheReader(source, memory_map=False) as reader:
            self._check_recipe(reader.manifest.identity, source, "reuse caches of this recipe alone")
            rows = rows_of(reader, missing)
            if not len(rows):
                return 0
            if self._features is not None:
                self._check_features(reader.features, str(source))
            keys, views = reader.keys[reader.sample_of_row[rows]], reader.view[rows]
            name = REUSED_PREFIX + _segment_id(keys, views)
            self._publish(name, lambda temp: copy_rows(temp, reader, rows, names))
            self._check_features(reader.features, str(source))
        self._done.update(zip(map(bytes, keys), views.tolist(), strict=True))
        return len(rows)

    def finish(self, provenance: Mapping[str, Any] | None = None) -> CacheReader:
        """Seal, merge `out` and all parts into `out`, verify it, remove the parts and their folder, and open `out`.

        `provenance` replaces these fields of the manifest's; an `out` that would gain neither rows nor fields stays.
        A part is removed if all that is `done` stands in `out`, a damaged one if its own rows do; segments that others
        put there meanwhile are neither merged nor removed.
        """
        self.seal()
        if not self._done:
            raise CacheMismatch(f"no rows for {self.out}: nothing was added")
        if self._in_out and not self.out.exists():
            raise CacheMismatch(f"{self.out} vanished during the build; its parts are kept: run the same command again")
        fields = plain_object(dict(provenance or {}), "provenance", floats=True)
        if self._done != self._in_out or not self._out_says(fields):
            old = [self.out] if self.out.exists() else []
            parts = [part for part in sorted(self._segments) if part.exists()]
            if not old + parts:
                raise self._vanished(len(self._done))
            merge_locked([*old, *parts], self.out, self.parts, fields, replace=bool(old))
        reader = CacheReader(self.out)
        if n_missing := len(self._done) - self._count_done(reader):
            raise self._vanished(n_missing)
        replaced = [aside for aside in self._workspace.damaged() if self._is_replaced(aside, reader)]
        self._workspace.clear([*sorted(self._segments), *replaced])
        return reader

    def last_provenance(self) -> dict[str, Any]:
        """What the newest sealed rows, in a part or else in `out`, say of their making; empty without any."""
        parts = sorted(self._segments, key=lambda part: part.stat().st_mtime_ns)
        newest = parts[-1] if parts else self.out
        return CacheReader(newest).manifest.provenance if newest.exists() else {}

    def _publish(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` make a segment under a temporary name, and give it its own."""
        final = self.parts / (name + SEGMENT_SUFFIX)
        temp = durable.temp_name(final)
        try:
            write(temp)
            with durable.disk_errors(final, 4096):
                durable.publish_new(temp, final)
        finally:
            with suppress(OSError):
                temp.unlink(missing_ok=True)
        self._segments.add(final)

    def _vanished(self, n_rows: int) -> CacheMismatch:
        return CacheMismatch(
            f"{n_rows:,} rows that were sealed vanished during the build of {self.out}; "
            f"the parts that are left are kept: run the same command again"
        )

    def _count_done(self, reader: CacheReader) -> int:
        """How many rows of `done` a cache has; one by one, as a second set of all would double the memory."""
        return sum((key, view) in self._done for at, key in enumerate(reader) for view in reader.views_of(at).tolist())

    def _is_replaced(self, aside: Path, out: CacheReader) -> bool:
        """Whether every row of a damaged segment stands in `out`; if not, or if nobody can tell, a warning says so."""
        try:
            damaged = CacheReader(aside, memory_map=False)
        except CacheError:
            log.warning("%s stays: it is too damaged to tell which rows it held; remove it if you miss none", aside)
            return False
        rows = out.row(out.find(damaged.keys)[damaged.sample_of_row], damaged.view)
        n_missing = int((rows < 0).sum()) if damaged.recipe_id == out.recipe_id else damaged.n_rows
        if n_missing:
            log.warning("%s stays: %d of its %d rows are not in %s", aside, n_missing, damaged.n_rows, out.path)
        return not n_missing

    def _out_says(self, fields: Mapping[str, Any]) -> bool:
        return fields.items() <= CacheReader(self.out).manifest.provenance.items()

    def _check_open(self) -> None:
        if not self._workspace.is_held:
            raise CacheMismatch(f"the writer of {self.out} is not open: use it as `with SegmentedWriter(...) as w`")

    def _check_out(self) -> None:
        if self.out.exists():
            self._check_recipe(CacheReader(self.out).manifest.identity, self.out, "choose another -o")

    def _check_recipe(self, identity: dict[str, Any], where: Path, remedy: str) -> None:
        names = "it", "what is to be written"
        if found := apart(identity, self.manifest.identity, names, "stored against wanted"):
            raise CacheMismatch(f"{where} is of another recipe{found.reason}: {remedy}{found.fields}")

    def _check_features(self, found: FeatureShapes, where: str) -> None:
        if self._features is None:
            self._features = found
        if found != self._features:
            raise CacheMismatch(f"{where} has {in_words(found)}, the rows before it have {in_words(self._features)}")

    def _take_up_plan(self) -> None:
        """Read the plan of an earlier run, whose compute setting wins if it left any rows, or write this one's."""
        stored = self._stored_plan() if self._workspace.has_computed() else None
        if stored is not None:
            identity, setting = stored
            remedy = f"choose another -o, or delete the folder {self.parts} to start over"
            self._check_recipe(identity, self.parts, remedy)
            if found := differences(setting, self._setting):
                log.warning("%s keeps the compute setting of its parts: %s", self.parts, "; ".join(found))
            self._setting = setting
        else:
            ours = {"recipe_id": self.manifest.recipe_id, "identity": self.manifest.identity}
            plan = {"format": FORMAT, **ours, "compute_setting": self._setting}
            content = json.dumps(plan, sort_keys=True, allow_nan=False).encode()
            durable.write_atomic(self._workspace.plan, content)

    def _stored_plan(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Identity and compute setting of an earlier run; None without a sound plan, which the segments can spare."""
        path = self._workspace.plan
        try:
            plan = parse_strict(path.read_bytes())
            check_format(plan)
            if [plan["format"], plan["recipe_id"]] != [FORMAT, Manifest(plan["identity"], {}).recipe_id]:
                raise ManifestError("its recipe_id is not that of its identity")
            return plan["identity"], dict(plan["compute_setting"])
        except FileNotFoundError:
            return None
        except CacheNewer as error:
            raise CacheNewer(f"cannot read {path}: {error}") from error
        except OSError as error:
            raise CacheError(f"cannot read {path}: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s is damaged (%s) and is written anew, with the compute setting of this run", path, error)
            return None

    def _take_up_rows(self) -> None:
        """Collect what is done, one verified file at a time; a damaged part is set aside, a damaged `out` refused."""
        if self.out.exists():
            self._in_out = self._pairs_of(self.out, "choose another -o")
        self._done |= self._in_out
        for part in self._workspace.segments():
            try:
                self._done |= self._pairs_of(part, f"remove it, or delete the folder {self.parts} to start over")
                self._segments.add(part)
            except CacheDamaged as error:
                aside = self._workspace.set_aside(part)
                log.warning(
                    "%s; renamed to %s, its rows will be computed again where DATA still has them", error, aside
                )

    def _pairs_of(self, path: Path, remedy: str) -> set[Pair]:
        with CacheReader(path, memory_map=False) as reader:
            self._check_recipe(reader.manifest.identity, path, remedy)
            reader.verify()
            self._check_features(reader.features, path.name)
            return reader.pairs()


def _segment_id(*tables: np.ndarray) -> str:
    """Hex sha256 of the tables that say which rows these are: the same rows have the same name."""
    digest = hashlib.sha256()
    for array in tables:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
