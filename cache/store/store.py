"""A store of caches: `RECIPE_ID/CONTENT_ID.json` beside `RECIPE_ID/CONTENT_ID.SHA256.h5`, behind any fsspec URL.

No data in it ever change: what was damaged there is only put right by the very bytes that its name promises. The
manifest is written last, so what it points to stands whole; two who push the same rows at once each write their own
data, and whichever manifest is written last points to a whole one.
Run: `softlabel cache push t.h5 URL`

Legend: N samples, R rows = (sample, view).
"""

import enum
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cache import durable, manifest, quarantine
from cache.errors import CacheDamaged, CacheError, CacheMismatch, ManifestError, printable
from cache.layout import KEY_BYTES, check_order
from cache.reader import CacheReader
from cache.store.address import FOLDER, StoreAddress
from cache.store.download import download, table_bytes
from cache.store.entry import MAX_BYTES, Entry
from cache.store.files import Files, Progress
from cache.store.listing import in_order
from cache.store.outgoing import Parcel, packed, refuse_unpullable, sweep, workspace_of
from cache.store.places import files_of, is_folder_there, refuse_read_only
from cache.store.privacy import what_goes_out
from cache.store.trouble import ObjectRefused, Patience, StoreError
from cache.workspace import Workspace

log = logging.getLogger(__name__)

PARTIAL_SUFFIX = ".pull"
_MANIFEST_NAME = re.compile(r"([0-9a-f]{64})/([0-9a-f]{64})\.json")
_BELOW = re.compile(r"(.+)/[0-9a-f]{64}/[0-9a-f]{64}\.json")
_MAX_TABLE_BYTES = 2 << 30
_N_LISTED = 10


class Stood(enum.Enum):
    """What a push found of the rows that it brings."""

    NOTHING = "nothing"
    WHOLE = "whole"
    MISSING = "missing"
    """A manifest without its data."""
    DAMAGED = "damaged"
    """A manifest whose data are not what it says."""


@dataclass(frozen=True)
class Pushed:
    """What a push came to."""

    entry: Entry
    is_new: bool
    """False where nothing had to be sent: the same rows stood there already, from whomever."""
    stood: Stood


@dataclass(frozen=True, eq=False)
class RowTables:
    """Which rows an object has, without the rows: key uint8 (N,16), first_row uint64 (N+1,), view uint16 (R,)."""

    key: np.ndarray
    first_row: np.ndarray
    view: np.ndarray

    def pairs(self) -> set[tuple[bytes, int]]:
        """Every (key, view)."""
        raw, first = self.key.tobytes(), self.first_row.astype(np.int64)
        keys = [raw[at : at + KEY_BYTES] for at in range(0, len(raw), KEY_BYTES)]
        owners = np.repeat(np.arange(len(keys)), first[1:] - first[:-1]).tolist()
        return {(keys[owner], view) for owner, view in zip(owners, self.view.tolist(), strict=True)}


@dataclass(frozen=True)
class Listing:
    """What stands in a store, and a line for each manifest that is not one."""

    entries: list[Entry]
    broken: list[str]


class _Arriving(Workspace):
    """Where a pull arrives: what came of it stays for the next one."""

    def has_work(self) -> bool:
        """Whether there is anything to go on from."""
        return super().has_work() or any(self.folder.glob(f"*{PARTIAL_SUFFIX}"))


class Store:
    """The caches behind one URL or in one folder; connects at the first question."""

    def __init__(self, url: str | StoreAddress, *, patience: Patience | None = None) -> None:
        self.address = url if isinstance(url, StoreAddress) else StoreAddress.parse(url)
        self._patience = patience or Patience()
        self._refused = set[str]()
        """Names of data that are not what their manifests say: they count as damaged, whatever their size."""

    @property
    def place(self) -> str:
        """Where what is pushed goes, for people and the memory of their yes: the URL, and the server of a bucket."""
        return self.files.place

    @cached_property
    def files(self) -> Files:
        """The files below the root."""
        return files_of(self.address, self._patience)

    @property
    def is_there(self) -> bool:
        """False for a folder that a first push would make; whatever is remote says so when it is asked."""
        return self.address.protocol != FOLDER or is_folder_there(self.address)

    def refuse_read_only(self) -> None:
        """StoreError for a folder that takes no files; whatever is remote says so when something is sent."""
        if self.address.protocol == FOLDER:
            refuse_read_only(self.address)

    def entries(self, recipe_id: str | None = None) -> list[Entry]:
        """All objects, or those of one recipe, in the order of a list; a warning for each manifest that is not one."""
        found = self.listing(recipe_id)
        for line in found.broken:
            log.warning("%s", line)
        return found.entries

    def listing(self, recipe_id: str | None = None) -> Listing:
        """The same, the warnings as values."""
        return self._read(self._names(recipe_id))

    def stores_below(self) -> list[str]:
        """Where stores begin below this one's root, as `list` of a folder or a bucket above them would miss."""
        found = {match.group(1) for name in self.files.sizes() if (match := _BELOW.fullmatch(name))}
        return [self.files.shown(name) for name in sorted(found)]

    def find(self, wanted: str) -> Entry:
        """The one object that a prefix of a content_id, cache_id or recipe_id means, or RECIPE_ID/PREFIX."""
        recipe, _, prefix = wanted.lower().rpartition("/")
        names = self._names(recipe or None)
        near = {name: n for name, n in names.items() if any(part.startswith(prefix) for part in name.split("/"))}
        found = [entry for entry in self._read(near or names).entries if _is_meant(entry, prefix)]
        if not found:
            where = self.address
            raise StoreError(f"{where} has nothing with the ID {printable(wanted)}: softlabel cache list {where}")
        if len(found) > 1:
            lines = [f"  {one.content_id[:16]}  {_in_words(one)}" for one in found[:_N_LISTED]]
            more = [f"  ... and {len(found) - _N_LISTED} more"] if len(found) > _N_LISTED else []
            raise StoreError("\n".join([f"{len(found)} caches have the ID {printable(wanted)}:", *lines, *more]))
        return found[0]

    def row_tables(self, entry: Entry) -> RowTables:
        """Which (key, view) rows an object has, from its small tables alone; StoreError where they are not its own."""
        if any(place.n_bytes > _MAX_TABLE_BYTES for place in entry.tables.values()):
            raise ObjectRefused(
                f"{self.files.shown(entry.name)} promises tables of over {_MAX_TABLE_BYTES:,} bytes: refused"
            )
        with self._remembering(entry):
            return self._row_tables(entry)

    def _row_tables(self, entry: Entry) -> RowTables:
        key, first_row, view = (
            np.frombuffer(table_bytes(self.files, entry, name), dtype)
            for name, dtype in (("samples/key", "|u1"), ("samples/first_row", "<u8"), ("rows/view", "<u2"))
        )
        key = key.reshape(-1, KEY_BYTES)
        try:
            check_order(key, first_row, view, CacheDamaged)
        except CacheDamaged as error:
            raise ObjectRefused(
                f"{self.files.shown(entry.data_name)}: {error}: refused; {self.files.remedy}"
            ) from error
        if manifest.cache_id(entry.recipe_id, key, first_row, view) != entry.cache_id:
            raise ObjectRefused(
                f"{self.files.shown(entry.data_name)}: its tables are not those of its cache_id: refused; "
                f"{self.files.remedy}"
            )
        return RowTables(key, first_row, view)

    def push(
        self,
        path: str | Path,
        *,
        with_names: bool = False,
        check: bool = False,
        confirm: Callable[[list[str]], None] | None = None,
        progress: Progress | None = None,
    ) -> Pushed:
        """Publish what may go out of a cache, verified before; uploads nothing where the same rows stand there already.

        Data that this object refused (`pull`, `row_tables`) do not count as standing; with `check` those that stand
        are read back first, as a pull does. `confirm` gets the lines that say what goes out and what stays, before
        anything is sent, and may raise.
        """
        self.refuse_read_only()
        with CacheReader(path, memory_map=False) as reader:
            reader.verify()
            content_id = reader.content_id
            refuse_unpullable(reader, with_names=with_names)
            sweep(reader.path)
            standing = self._manifest(reader.recipe_id, content_id)
            if check and standing is not None:
                self._check(standing, reader.path)
            stood = self._stood(standing)
            if standing is not None and stood is Stood.WHOLE:
                return Pushed(standing, is_new=False, stood=stood)
            if confirm is not None:
                confirm(what_goes_out(reader, with_names=with_names))
            with packed(reader, content_id, with_names=with_names) as parcel:
                return self._publish(parcel, stood, progress or _no_progress, check=check)

    def pull(self, entry: Entry, out: str | Path, *, progress: Progress | None = None) -> Path:
        """Bring an object to `out`, which must not exist unless it has the same rows; resumes in `out`.parts.

        Compared with its sha256 first, then looked at by a child process, then its ids compared; then it gets its name.
        """
        workspace = _Arriving(Path(out))
        if workspace.out.exists():
            return self._there_already(entry, workspace.out)
        with workspace:
            partial = workspace.folder / f"{entry.sha256}{PARTIAL_SUFFIX}"
            self._bring(entry, partial, progress or _no_progress)
            with durable.disk_errors(workspace.out, entry.n_bytes):
                is_new = durable.publish_new(partial, workspace.out)
        if not is_new:
            return self._there_already(entry, workspace.out)
        return workspace.out

    def _names(self, recipe_id: str | None) -> dict[str, int]:
        """Name -> bytes of each manifest."""
        sizes = self.files.sizes(recipe_id or "")
        return {name: n_bytes for name, n_bytes in sizes.items() if _MANIFEST_NAME.fullmatch(name)}

    def _read(self, names: dict[str, int]) -> Listing:
        entries, broken = list[Entry](), list[str]()
        readable = {name: n_bytes for name, n_bytes in names.items() if 0 < n_bytes <= MAX_BYTES}
        contents = self.files.read_many(readable)
        for name, n_bytes in sorted(names.items()):
            recipe_id, content_id = name.removesuffix(".json").split("/")
            content = contents.get(name, StoreError(f"{n_bytes:,} bytes, expected 1 to {MAX_BYTES:,}"))
            try:
                if isinstance(content, Exception):
                    raise content if isinstance(content, CacheError) else ManifestError(type(content).__name__)
                entries.append(Entry.from_bytes(content, recipe_id, content_id))
            except CacheError as error:
                broken.append(printable(self.address.redact(f"{self.files.shown(name)} is left out: {error}")))
        return Listing(in_order(entries), broken)

    def _manifest(self, recipe_id: str, content_id: str) -> Entry | None:
        """What stands there of these rows, if it can be read."""
        name = f"{recipe_id}/{content_id}.json"
        n_bytes = self.files.size(name)
        if not n_bytes or n_bytes > MAX_BYTES:
            return None
        try:
            return Entry.from_bytes(self.files.read(name, 0, n_bytes), recipe_id, content_id)
        except ManifestError as error:
            log.warning("%s cannot be read (%s): it is written anew", self.files.shown(name), error)
            return None

    def _stood(self, standing: Entry | None) -> Stood:
        """How the data of a manifest stand, by their size and by what is known of them."""
        if standing is None:
            return Stood.NOTHING
        n_bytes = self.files.size(standing.data_name)
        if n_bytes is None:
            return Stood.MISSING
        is_whole = n_bytes == standing.n_bytes and standing.data_name not in self._refused
        return Stood.WHOLE if is_whole else Stood.DAMAGED

    def _publish(self, parcel: Parcel, stood: Stood, progress: Progress, *, check: bool) -> Pushed:
        entry = parcel.entry
        raw = entry.to_bytes()
        Entry.from_bytes(raw, entry.recipe_id, entry.content_id)  # what nobody could list is not pushed
        self._send(parcel.path, entry, progress, check=check)
        again = self._manifest(entry.recipe_id, entry.content_id)
        if again is not None and self._stood(again) is Stood.WHOLE:
            # Whole by what was just sent, or somebody else's, which others may be pulling already and is as good.
            is_ours = stood is not Stood.NOTHING and again.sha256 == entry.sha256
            return Pushed(again, is_new=is_ours, stood=stood if is_ours else Stood.WHOLE)
        self.files.write_small(entry.name, raw)
        self._refused.discard(entry.data_name)
        return Pushed(entry, is_new=True, stood=stood)

    def _send(self, path: Path, entry: Entry, progress: Progress, *, check: bool) -> None:
        """The data object, unless it stands; what is not whole gives way to the bytes that its name promises."""
        found = self.files.size(entry.data_name)
        if check and found == entry.n_bytes and entry.data_name not in self._refused:
            self._check(entry, path)
        if found != entry.n_bytes or entry.data_name in self._refused:
            self.files.upload(path, entry.data_name, entry.sha256, progress, replace=found is not None)
            found = self.files.size(entry.data_name)
        if found != entry.n_bytes:
            raise StoreError(
                f"{self.files.shown(entry.data_name)} has {found or 0:,} bytes after the upload, expected "
                f"{entry.n_bytes:,}: push again"
            )

    def _check(self, entry: Entry, beside: Path) -> None:
        """Read an object back as a pull does, to a temporary file; what a pull would refuse is remembered."""
        log.info("reading back %s bytes of %s", f"{entry.n_bytes:,}", self.files.shown(entry.data_name))
        with workspace_of(beside) as workspace:
            try:
                self._bring(entry, durable.temp_name(beside, workspace.folder), _no_progress)
                self.row_tables(entry)
            except (ObjectRefused, CacheDamaged, CacheMismatch) as error:
                log.debug("%s", error)

    def _bring(self, entry: Entry, partial: Path, progress: Progress) -> None:
        """The bytes of an object, examined; `partial` is gone where they are not its own."""
        with self._remembering(entry):
            download(self.files, entry, partial, progress)
            try:
                self._examine(entry, partial)
            except CacheError:
                partial.unlink(missing_ok=True)
                raise

    @contextmanager
    def _remembering(self, entry: Entry) -> Iterator[None]:
        """Inside, a refusal of an object is remembered."""
        try:
            yield
        except (ObjectRefused, CacheDamaged, CacheMismatch):
            self._refused.add(entry.data_name)
            raise

    def _examine(self, entry: Entry, partial: Path) -> None:
        shown = self.files.shown(entry.data_name)
        try:
            found = quarantine.examine(partial)
        except CacheDamaged as error:
            raise CacheDamaged(f"{shown} is refused: {error}; {self.files.remedy}") from error
        for name in ("recipe_id", "cache_id", "content_id"):
            if getattr(found, name) != getattr(entry, name):
                raise CacheMismatch(
                    f"{shown} is refused: its {name} is {getattr(found, name)[:16]}..., its manifest says "
                    f"{getattr(entry, name)[:16]}...; {self.files.remedy}"
                )

    def _there_already(self, entry: Entry, out: Path) -> Path:
        """`out`, if it has the rows of the entry."""
        try:
            same = quarantine.examine(out).content_id == entry.content_id
        except CacheError:
            same = False
        if not same:
            raise CacheMismatch(f"{out} exists and is another file: choose another -o, or remove it first")
        log.info("%s is there already, with the same rows", out)
        return out


def _is_meant(entry: Entry, prefix: str) -> bool:
    return any(one.startswith(prefix) for one in (entry.content_id, entry.cache_id, entry.recipe_id))


def _in_words(entry: Entry) -> str:
    """For a choice between several."""
    return printable(f"{entry.teacher or 'unknown teacher'}, {entry.n_samples:,} images, {entry.n_rows:,} views")


def _no_progress(n_bytes: int) -> None:
    return None
