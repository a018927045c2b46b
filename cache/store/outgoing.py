"""The file that a push sends: a copy without names and with what may go out of the provenance, and its manifest.

Never changes the cache that is pushed. The copy lies beside it, or in the system's folder for temporary files where
that cannot be written, and goes with the push; what a killed push left goes with the next one.
Run: `softlabel cache push t.h5 URL`
"""

import dataclasses
import hashlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from cache import durable
from cache.derive import fill_from
from cache.errors import CacheBusy, CacheDamaged, CacheDiskFull, CacheError, CacheMismatch
from cache.fill import NewFile
from cache.guard import Inspected, inspect, opened
from cache.layout import Dims, encode_name
from cache.manifest import Manifest
from cache.names import refuse_names, refuse_texts
from cache.reader import CacheReader
from cache.skeleton import skeleton
from cache.store.entry import HEAD, PRECISION, SEED, TABLES, Entry, TablePlace
from cache.store.privacy import public, teacher_name
from cache.store.trouble import StoreError
from cache.workspace import Workspace

_IMPORTED = re.compile("imported")
_MARK = ".push-"


@dataclasses.dataclass(frozen=True)
class Parcel:
    """A file that may go out as it is, and what the store will say of it."""

    path: Path
    entry: Entry


@contextmanager
def packed(reader: CacheReader, content_id: str, *, with_names: bool) -> Iterator[Parcel]:
    """Inside, the parcel of a verified cache lies on the disk, where nobody else writes to it.

    `content_id` is that of `reader`. CacheDiskFull where there is no room, CacheMismatch where the file changed.
    """
    with workspace_of(reader.path) as workspace:
        temp = durable.temp_name(reader.path, workspace.folder)
        manifest = public(reader.manifest)
        if _is_public(reader, manifest, with_names=with_names):
            with durable.disk_errors(temp, reader.path.stat().st_size):
                shutil.copyfile(reader.path, temp)
        else:
            dims = _dims(reader, manifest, with_names=with_names)
            with NewFile(temp, dims.specs()) as new:
                fill_from(reader, new, {}, names=with_names)
                new.seal(manifest)
        with CacheReader(temp, memory_map=False) as copy:
            copy.verify()
            if (copy.cache_id, copy.content_id) != (reader.cache_id, content_id):
                raise CacheMismatch(
                    f"{reader.path} changed while it was copied: push it again when nobody writes to it"
                )
            # Anything else would be a mistake of ours: the ids that teammates ask for.
            assert copy.recipe_id == reader.recipe_id
            assert with_names or copy.names is None
            entry = entry_of(copy)
        yield Parcel(temp, entry)


def refuse_unpullable(reader: CacheReader, *, with_names: bool) -> None:
    """StoreError for names in a cache that every pull would refuse, by the pull's own rules."""
    try:
        refuse_texts(reader.manifest)
    except CacheDamaged as error:
        raise StoreError(
            f"{reader.path} is not pushed, as nobody could pull it: {error}; build it anew with other names"
        ) from error
    if not with_names or reader.names is None:
        return
    reasons = [reason for name in reader.names if (reason := _refused(name))]
    if reasons:
        raise StoreError(
            f"{reader.path} is not pushed, as nobody could pull {len(reasons):,} of its {reader.n_samples:,} names, "
            f"first: {reasons[0]}: rename the files and build anew, or push without --with-names"
        )


def _refused(name: str) -> str:
    """Why a pull would refuse the name of an image; empty if it would not."""
    try:
        refuse_names(np.array([encode_name(name)]))
    except CacheDamaged as error:
        return str(error)
    return ""


def entry_of(reader: CacheReader) -> Entry:
    """What a store says of this file."""
    with opened(reader.path) as file:
        inspected = inspect(file, reader.path)
        digest, n_bytes = _sha256(file, 0, inspected.file_bytes), inspected.file_bytes
        tables = {name: _table(file, inspected, name) for name in TABLES}
    n_views = np.diff(reader.first_row.astype(np.int64))
    identity = reader.manifest.identity
    teacher, views = (_object(identity.get(name)) for name in ("teacher", "views"))
    return Entry(
        recipe_id=reader.recipe_id,
        cache_id=reader.cache_id,
        content_id=reader.content_id,
        sha256=digest,
        n_bytes=n_bytes,
        teacher=teacher_name(reader.manifest),
        tasks=reader.tasks,
        n_samples=reader.n_samples,
        n_rows=reader.n_rows,
        views=(int(n_views.min()), int(n_views.max())),
        features=reader.features,
        precision=_word(identity.get("precision"), PRECISION) or "unknown",
        has_names=reader.names is not None,
        head=_word(teacher.get("head"), HEAD) or _word(teacher.get("kind"), _IMPORTED),
        seed=_word(views.get("seed"), SEED),
        created=str(reader.manifest.provenance.get("created", "")),
        pushed=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tables=tables,
    )


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _word(value: Any, pattern: re.Pattern[str]) -> str:
    """A text of this form; empty for anything else."""
    return value if isinstance(value, str) and pattern.fullmatch(value) else ""


def _table(file: FileIO, inspected: Inspected, name: str) -> TablePlace:
    spec, offset = inspected.extents[name]
    return TablePlace(offset, spec.n_bytes, _sha256(file, offset, spec.n_bytes))


def _sha256(file: FileIO, offset: int, n_bytes: int) -> str:
    digest = hashlib.sha256()
    for piece in durable.chunks(file, offset, n_bytes):
        digest.update(piece)
    return digest.hexdigest()


def _dims(reader: CacheReader, manifest: Manifest, *, with_names: bool) -> Dims:
    names = reader.names if with_names else None
    return dataclasses.replace(
        reader.dims,
        manifest_bytes=len(manifest.to_bytes()),
        name_bytes=None if names is None else max(1, *(len(encode_name(name)) for name in names)),
    )


def _is_public(reader: CacheReader, manifest: Manifest, *, with_names: bool) -> bool:
    """Whether the file is what would be sent, to the last byte: then it keeps its sha256.

    Only of a file that our own writer laid out is known that nothing else stands in it (`verify` looks at the rest).
    """
    if manifest != reader.manifest or (reader.names is not None and not with_names):
        return False
    with opened(reader.path) as file:
        inspected = inspect(file, reader.path)
        expected, pieces, n_bytes = skeleton({name: extent.spec for name, extent in inspected.extents.items()})
        if expected != inspected.extents or n_bytes != inspected.file_bytes:
            return False
        for offset, content in pieces:
            found = bytearray(len(content))
            durable.read_exactly(file, memoryview(found), offset)
            if found != content:
                return False
    return True


@contextmanager
def workspace_of(path: Path) -> Iterator[Workspace]:
    """A folder of this push alone, beside the file if that can be; gone after."""
    beside, elsewhere = (folder / path.name for folder in (path.parent, Path(tempfile.gettempdir())))
    for final in (beside, elsewhere):
        workspace = Workspace(final.with_name(f"{final.name}{_MARK}{secrets.token_hex(4)}"))
        try:
            workspace.enter()
        except (CacheDiskFull, CacheBusy):
            raise
        except CacheError:
            if final == elsewhere:
                raise
            continue  # a folder that only others can write to
        try:
            yield workspace
        finally:
            workspace.leave()
        return


def sweep(path: Path) -> None:
    """Remove the copies that killed pushes of this file left; those that run hold their locks."""
    for parent in (path.parent, Path(tempfile.gettempdir())):
        for folder in parent.glob(f"*{_MARK}*.parts"):
            out = folder.with_suffix("")
            if out.name.rpartition(_MARK)[0] == path.name:
                with suppress(CacheError, OSError), Workspace(out):
                    pass
