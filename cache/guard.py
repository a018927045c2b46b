"""Open a cache file without trusting it: layout, then seal, then order; only then does anybody see a row.

Never writes, and never shows the file to libhdf5: `cache.container` finds names and offsets, the bytes come from the
same descriptor. Never sweeps the CRCs (`cache.verify`). Run: `softlabel cache info FILE.h5`.
"""

import glob
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache import durable
from cache.container import SUPERBLOCK_BYTES, Container, contents
from cache.errors import CacheDamaged, CacheError, CacheNewer, CacheNotFound, ManifestError, printable, shortened
from cache.layout import FEATURE_NAME, Dims, Extent, Spec, check_order, is_big, seal_of
from cache.manifest import MAX_BYTES, Manifest, check_format, parse_strict

MAX_NAME_BYTES = 4096
"""Of an image's name: what an operating system takes as a path."""
MAX_TABLE_BYTES = 4 << 30
"""Of all tables that are held in memory; ten million samples with 8 views and names of 300 bytes need 3.4 GB."""
_FREE_TABLE_BYTES = 64 << 20
_MAX_SPARSENESS = 8
_PIECE_BYTES = 1 << 20
_NEVER_EMPTY = ("samples/key", "samples/first_row")
"""Both ascend, so a stretch of zeros is a hole; they are read first, and everything else is as long as they are."""


class Stamp(NamedTuple):
    """Which file this is and when it was last touched: two equal stamps, the same bytes.

    Any write changes the time of the inode, which no program can set back; so do a rename and a new link.
    """

    n_bytes: int
    modified_ns: int
    inode_changed_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, file: FileIO) -> "Stamp":
        """That of an open file, now."""
        status = os.fstat(file.fileno())
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


@dataclass(frozen=True, eq=False)
class Inspected:
    """A file that passed: its manifest, where everything lies, its seal, and the small tables in memory."""

    manifest: Manifest
    dims: Dims
    extents: dict[str, Extent]
    seal: bytes
    stamp: Stamp
    small: dict[str, np.ndarray]

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.stamp.n_bytes


@contextmanager
def opened(path: Path) -> Iterator[FileIO]:
    """The file for reading, without locks, or a CacheError that says why not."""
    try:
        file = durable.open_to_read(path)
    except FileNotFoundError as error:
        build = f"`softlabel cache build DATA -o {shlex.quote(str(path))}`"
        if any(path.parent.glob(f"{glob.escape(path.name)}.parts/*.h5")):
            raise CacheNotFound(f"{path} is not finished, its parts stand beside it: repeat its {build}") from error
        raise CacheNotFound(f"no cache at {path}: is the path right? {build} makes one") from error
    except IsADirectoryError as error:
        raise CacheError(f"{path} is a folder, expected a cache file: name the .h5 file itself") from error
    except OSError as error:
        raise CacheError(f"cannot open {path}: {error.strerror}") from error
    with file:
        yield file


def inspect(file: FileIO, path: Path, *, names: bool = True) -> Inspected:
    """Check layout, seal, manifest and order of an open file; without `names` these are checked, and not kept.

    Raises CacheDamaged; CacheNewer for a later format; CacheError where the drive fails, which is not the file's fault.
    """
    try:
        return _inspect(file, names)
    except CacheNewer as error:
        raise CacheNewer(f"cannot read {path}: {error}") from error
    except (CacheDamaged, ManifestError) as error:
        reason = printable(shortened(str(error), 600))
        raise CacheDamaged(
            f"{path} is not a sound cache: {reason}. Pull or copy it again, or rebuild it with "
            f"`softlabel cache build DATA -o OTHER.h5`"
        ) from error
    except OSError as error:
        raise CacheError(unreadable_message(path, error)) from error


def unreadable_message(path: Path, error: OSError) -> str:
    """Why a file could not be read, where that is not its own fault."""
    return f"cannot read {path} ({error.strerror or error}): is its drive still there?"


def read_object(file: FileIO, extent: Extent) -> np.ndarray:
    """One object's array, read-only, in memory."""
    raw = np.empty(extent.spec.n_bytes, np.uint8)
    durable.read_exactly(file, raw.data, extent.offset)
    array = raw.view(extent.spec.dtype).reshape(extent.spec.shape)
    array.flags.writeable = False
    return array


def _inspect(file: FileIO, with_names: bool) -> Inspected:
    stamp = Stamp.of(file)  # before anything is read: what is written from now on shows
    container = contents(file, stamp.n_bytes)
    extents = container.extents
    specs = {name: extent.spec for name, extent in extents.items()}
    _check_bounds(extents, stamp.n_bytes)
    _check_overlaps(container)
    try:
        dims = Dims.of(specs)
        _check_specs(specs, dims.specs())
    except CacheDamaged:
        _check_format(file, extents)
        raise
    _check_tables(file, specs)
    # Read once: what is hashed is what is kept, whatever happens to the file.
    kept = filter(lambda name: not is_big(name) and (with_names or name != "samples/name"), extents)
    small = {
        name: _table(file, name, extents[name]) for name in sorted(kept, key=lambda name: name not in _NEVER_EMPTY)
    }
    seal = small["seal"].tobytes()
    if seal_of(specs, lambda name: _table_bytes(file, extents[name], small.get(name))) != seal:
        raise CacheDamaged("its seal does not match its tables (a changed or half-copied file)")
    manifest = Manifest.from_bytes(small.pop("manifest").tobytes())
    _check_manifest(manifest, dims)
    check_order(small["samples/key"], small["samples/first_row"], small["rows/view"], CacheDamaged)
    return Inspected(manifest, dims, extents, seal, stamp, small)


def _check_specs(found: dict[str, Spec], expected: dict[str, Spec]) -> None:
    if set(found) != set(expected):
        missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        raise CacheDamaged(f"objects missing: {missing or 'none'}; not expected: {extra or 'none'}")
    for name, spec in found.items():
        # Compared as text: numpy calls some foreign types equal to ours (enums, booleans over uint8).
        if spec.dtype.str != expected[name].dtype.str or spec.shape != expected[name].shape:
            raise CacheDamaged(f"{name} is {spec}, expected {expected[name]}")
    if bad := [name for name in found if name.startswith("features/") and not FEATURE_NAME.fullmatch(name[9:])]:
        raise CacheDamaged(f"{bad[0]!r} is no name of a feature")
    if found["manifest"].n_bytes > MAX_BYTES:
        raise CacheDamaged(f"its manifest has {found['manifest'].n_bytes:,} bytes, expected at most {MAX_BYTES:,}")


def _check_bounds(extents: dict[str, Extent], file_bytes: int) -> None:
    for name, (spec, offset) in extents.items():
        if offset < 0 or offset + spec.n_bytes > file_bytes:
            raise CacheDamaged(f"{name} ends at byte {offset + spec.n_bytes:,} of a file of {file_bytes:,}")


def _check_overlaps(container: Container) -> None:
    """Refuse objects that share bytes, or lie on a header: whoever changed one would change the other."""
    places = [(offset, offset + spec.n_bytes, name) for name, (spec, offset) in container.extents.items()]
    places += [(at, at + SUPERBLOCK_BYTES, "a header of HDF5") for at in set(container.headers)]
    before: tuple[int, int, str] = (0, 0, "")
    for place in sorted(places):
        if place[0] < before[1]:
            raise CacheDamaged(f"{before[2]} and {place[2]} lie on the same bytes")
        before = place


def _check_tables(file: FileIO, specs: dict[str, Spec]) -> None:
    """Refuse tables that would not fit into memory, or take much more of it than the file takes of its disk."""
    width = specs["samples/name"].dtype.itemsize if "samples/name" in specs else 0
    if width > MAX_NAME_BYTES:
        raise CacheDamaged(f"its names are {width:,} bytes long, expected at most {MAX_NAME_BYTES:,}")
    n_bytes = sum(spec.n_bytes for name, spec in specs.items() if not is_big(name))
    if n_bytes > MAX_TABLE_BYTES:
        raise CacheDamaged(f"its tables have {n_bytes:,} bytes, expected at most {MAX_TABLE_BYTES:,}")
    # Some file systems do not tell, and say 0; some compress.
    on_disk = 512 * getattr(os.fstat(file.fileno()), "st_blocks", 0)
    if n_bytes > _FREE_TABLE_BYTES and on_disk and n_bytes > _MAX_SPARSENESS * on_disk:
        raise CacheDamaged(f"its tables claim {n_bytes:,} bytes of a file that has {on_disk:,} on its disk")


def _table(file: FileIO, name: str, extent: Extent) -> np.ndarray:
    """A table in memory; keys and places are refused at their first hole, before it costs memory."""
    if name in _NEVER_EMPTY:
        for piece in range(extent.offset, extent.offset + extent.spec.n_bytes - _PIECE_BYTES, _PIECE_BYTES):
            buffer = bytearray(_PIECE_BYTES)
            durable.read_exactly(file, memoryview(buffer), piece)
            if not np.frombuffer(buffer, np.uint8).any():
                raise CacheDamaged(f"{name} is empty from byte {piece:,} on")
    return read_object(file, extent)


def _table_bytes(file: FileIO, extent: Extent, kept: np.ndarray | None) -> Iterable[memoryview]:
    """The bytes of a table, from memory or else piece by piece."""
    if kept is None:
        return durable.chunks(file, extent.offset, extent.spec.n_bytes)
    return [kept.reshape(-1).view(np.uint8).data]


def _check_format(file: FileIO, extents: dict[str, Extent]) -> None:
    """Raise CacheNewer if it was a later version that wrote objects which this one does not know."""
    extent = extents.get("manifest")
    if extent is not None and extent.spec.n_bytes <= MAX_BYTES:
        with suppress(ManifestError):
            check_format(parse_strict(read_object(file, extent).tobytes()))


def _check_manifest(manifest: Manifest, dims: Dims) -> None:
    counts = tuple(len(classes) for classes in manifest.tasks.values())
    if counts != dims.class_counts:
        raise CacheDamaged(f"its logits have {dims.class_counts} columns, its manifest names {counts} classes")
    if len(manifest.view_columns) != dims.n_params:
        raise CacheDamaged(f"rows/params has {dims.n_params} columns, its manifest names {len(manifest.view_columns)}")
