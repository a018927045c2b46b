"""Open a cache file without trusting it: layout, then seal, then order; only then does anybody see a row.

Never writes, and never reads data through libhdf5: it parses the names and offsets, the bytes come from the same
descriptor. Never sweeps the CRCs (`cache.verify`). Run: `softlabel cache info FILE.h5`.
"""

import glob
import itertools
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from cache import durable
from cache.errors import CacheDamaged, CacheError, CacheNewer, CacheNotFound, ManifestError, printable
from cache.layout import FEATURE_NAME, Dims, Extent, Spec, check_order, is_big, seal_of
from cache.manifest import MAX_BYTES, Manifest, check_format, parse_strict

MAX_OBJECTS = 10_000
MAX_GROUP_DEPTH = 3


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
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed below; the body's own OSErrors are not ours to explain)
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


def inspect(file: FileIO, path: Path) -> Inspected:
    """Check layout, seal, manifest and order of an open file.

    Raises CacheDamaged; CacheNewer for a later format; CacheError where the drive fails, which is not the file's fault.
    """
    try:
        return _inspect(file)
    except CacheNewer as error:
        raise CacheNewer(f"cannot read {path}: {error}") from error
    except (CacheDamaged, ManifestError) as error:
        raise CacheDamaged(
            f"{path} is not a sound cache: {printable(str(error))}. Pull or copy it again, or rebuild it with "
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


def _inspect(file: FileIO) -> Inspected:
    stamp = Stamp.of(file)  # before anything is read: what is written from now on shows
    extents = _extents(file)
    specs = {name: extent.spec for name, extent in extents.items()}
    _check_bounds(extents, stamp.n_bytes)
    try:
        dims = Dims.of(specs)
        _check_specs(specs, dims.specs())
    except CacheDamaged:
        _check_format(file, extents)
        raise
    # Read once: what is hashed is what is kept, whatever happens to the file.
    small = {name: read_object(file, extent) for name, extent in extents.items() if not is_big(name)}
    seal = small["seal"].tobytes()
    if seal_of(specs, lambda name: [small[name].reshape(-1).view(np.uint8).data]) != seal:
        raise CacheDamaged("its seal does not match its tables (a changed or half-copied file)")
    manifest = Manifest.from_bytes(small.pop("manifest").tobytes())
    _check_manifest(manifest, dims)
    check_order(small["samples/key"], small["samples/first_row"], small["rows/view"], CacheDamaged)
    return Inspected(manifest, dims, extents, seal, stamp, small)


def _extents(file: FileIO) -> dict[str, Extent]:
    """Object name -> dtype, shape, offset, through libhdf5 over our own descriptor (so: no file locks either)."""
    try:
        file.seek(0)
        with h5py.File(file, "r") as h5:
            found: dict[str, Extent] = {}
            _walk(h5, "", found, itertools.count())
            return found
    # h5py answers damaged metadata with any of these, by where it meets it.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        # An errno is the drive's; libhdf5's own complaints have none.
        if isinstance(error, CacheDamaged) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise CacheDamaged(f"HDF5 cannot read it ({error})") from error


def _walk(group: h5py.Group, prefix: str, found: dict[str, Extent], visits: Iterator[int]) -> None:
    if prefix.count("/") > MAX_GROUP_DEPTH:
        raise CacheDamaged(f"groups nested deeper than {MAX_GROUP_DEPTH} at {prefix}")
    for name in group:
        full_name = prefix + name
        if next(visits) >= MAX_OBJECTS:  # hard links to one group can make few bytes look like millions of objects
            raise CacheDamaged(f"it has more than {MAX_OBJECTS:,} objects")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise CacheDamaged(f"{full_name} is a link, expected an object of this file")
        item = group[name]
        if isinstance(item, h5py.Group):
            _walk(item, full_name + "/", found, visits)
        elif isinstance(item, h5py.Dataset):
            found[full_name] = _extent(item, full_name)
        else:
            raise CacheDamaged(f"{full_name} is a {type(item).__name__}, expected a dataset")


def _extent(dataset: h5py.Dataset, name: str) -> Extent:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_external_count() or plist.get_nfilters():
        raise CacheDamaged(f"{name} is chunked, compact, virtual, external or filtered, expected a contiguous dataset")
    dtype, shape, offset = dataset.dtype, dataset.shape, dataset.id.get_offset()
    if dtype.hasobject or shape is None or not shape or not all(shape) or offset is None:
        raise CacheDamaged(f"{name} is {dtype} {shape} at {offset}, expected fixed-size values in allocated space")
    spec = Spec(dtype, tuple(shape))
    # Types that numpy lacks, such as bfloat16, are shown as wider ones.
    if dataset.id.get_storage_size() != spec.n_bytes or dataset.id.get_type() != h5py.h5t.py_create(dtype):
        raise CacheDamaged(f"{name} is stored as another type than the {dtype} that it is read as")
    return Extent(spec, int(offset))


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
