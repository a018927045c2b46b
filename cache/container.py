"""Which objects an HDF5 file has and where each one's bytes lie, through libhdf5 and little enough of the file.

libhdf5 gets the bytes from here, in pieces of bounded size and number: what a table claims to need is not allocated on
its word. Follows no link, opens no second file, reads no data, no attribute. Run: `softlabel cache info FILE.h5`
"""

import os
from io import FileIO
from typing import NamedTuple

import h5py

from cache.errors import CacheDamaged, shortened
from cache.layout import Extent, Spec

MAX_OBJECTS = 10_000
MAX_GROUP_DEPTH = 3
MAX_HEADER_BYTES = 1 << 14
"""Of one object's header: ours have some hundreds; types nested thousandfold fit into more, and use up the stack."""
MAX_PIECE_BYTES = 1 << 20
"""That libhdf5 may ask for at once."""
MAX_PIECES = 100_000
"""That it may ask for in all: ten for each object."""
SUPERBLOCK_BYTES = 8
"""The signature, with which every superblock begins."""

_CLASSES = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING)


class Container(NamedTuple):
    """Where everything lies, as far as libhdf5 tells."""

    extents: dict[str, Extent]
    headers: list[int]
    """First byte of each object's header, and of the superblock."""


class _Bounded:
    """An open file as libhdf5 sees it: reading only, so much at once, and so often."""

    def __init__(self, file: FileIO, n_bytes: int) -> None:
        self._file, self._n_bytes = file, n_bytes
        self._at = self._n_pieces = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._n_bytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        """All of the buffer; zeros behind the end, as libhdf5's own drivers do."""
        self._n_pieces += 1
        if len(buffer) > MAX_PIECE_BYTES or self._n_pieces > MAX_PIECES:
            raise CacheDamaged(
                f"its tables of contents need more than {MAX_PIECES:,} pieces of {MAX_PIECE_BYTES:,} bytes"
            )
        target = memoryview(buffer).cast("B")
        n_there = max(0, min(len(target), self._n_bytes - self._at))
        self._file.seek(self._at)
        left = target[:n_there]
        while left:
            n_read = self._file.readinto(left)
            if not n_read:
                raise CacheDamaged("it ends before its end: it is being written to")
            left = left[n_read:]
        target[n_there:] = bytes(len(target) - n_there)
        self._at += len(target)
        return len(target)

    def read(self, n_bytes: int) -> bytes:
        buffer = bytearray(n_bytes)
        self.readinto(memoryview(buffer))
        return bytes(buffer)

    def flush(self) -> None:
        """Nothing to flush; libhdf5 asks."""


def contents(file: FileIO, n_bytes: int) -> Container:
    """What is in an open file of that length; CacheDamaged where it is not what a cache may have.

    The caller's OSError comes through where the drive fails.
    """
    try:
        with h5py.File(_Bounded(file, n_bytes), "r") as h5:
            base = int(h5.userblock_size)
            found = Container({}, [base])
            _Walk(found, base).group(h5.id, "")
            return found
    # h5py answers damaged metadata with any of these, by where it meets it.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError, LookupError) as error:
        # An errno is the drive's; libhdf5's own complaints have none.
        if isinstance(error, CacheDamaged) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise CacheDamaged(f"HDF5 cannot read it ({shortened(str(error))})") from error


class _Walk:
    """One walk over all groups."""

    def __init__(self, found: Container, base: int) -> None:
        self._found, self._base, self._n_visits = found, base, 0

    def group(self, group: h5py.h5g.GroupID, prefix: str) -> None:
        """Add what is in a group and below it."""
        if prefix.count("/") > MAX_GROUP_DEPTH:
            raise CacheDamaged(f"groups nested deeper than {MAX_GROUP_DEPTH} at {shortened(prefix)}")
        for name in self._names(group):
            full_name = prefix + name.decode("utf-8", "surrogateescape")
            if group.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise CacheDamaged(f"{shortened(full_name)} is a link, expected an object of this file")
            header = h5py.h5o.get_info(group, name)
            if header.hdr.space.total > MAX_HEADER_BYTES:
                raise CacheDamaged(f"the header of {shortened(full_name)} has more than {MAX_HEADER_BYTES:,} bytes")
            self._found.headers.append(self._base + int(header.addr))
            item = h5py.h5o.open(group, name)
            if isinstance(item, h5py.h5g.GroupID):
                self.group(item, full_name + "/")
            elif isinstance(item, h5py.h5d.DatasetID):
                self._found.extents[full_name] = _extent(item, shortened(full_name))
            else:
                raise CacheDamaged(f"{shortened(full_name)} is a {type(item).__name__}, expected a dataset")

    def _names(self, group: h5py.h5g.GroupID) -> list[bytes]:
        """Stops at the limit: hard links to one group make few bytes look like millions of objects, a loop endless."""
        names: list[bytes] = []

        def take(name: bytes) -> bool | None:
            names.append(name)
            self._n_visits += 1
            return self._n_visits > MAX_OBJECTS or None

        group.links.iterate(take)
        if self._n_visits > MAX_OBJECTS:
            raise CacheDamaged(f"it has more than {MAX_OBJECTS:,} objects")
        return names


def _extent(dataset: h5py.h5d.DatasetID, name: str) -> Extent:
    plist = dataset.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_external_count() or plist.get_nfilters():
        raise CacheDamaged(f"{name} is chunked, compact, virtual, external or filtered, expected a contiguous dataset")
    stored = dataset.get_type()
    # Asked before numpy is told of the type, which for nested ones means work without end.
    is_plain = stored.get_class() in _CLASSES and not stored.committed()
    if not is_plain or (isinstance(stored, h5py.h5t.TypeStringID) and stored.is_variable_str()):
        raise CacheDamaged(f"{name} is of a type that caches lack, expected integers, floats or text of one length")
    dtype, shape, offset = stored.dtype, dataset.shape, dataset.get_offset()
    if shape is None or not shape or not all(shape) or offset is None:
        raise CacheDamaged(f"{name} is {dtype} {shape} at {offset}, expected fixed-size values in allocated space")
    spec = Spec(dtype, tuple(shape))
    # Types that numpy lacks, such as bfloat16, are shown as wider ones.
    if dataset.get_storage_size() != spec.n_bytes or stored != h5py.h5t.py_create(dtype):
        raise CacheDamaged(f"{name} is stored as another type than the {dtype} that it is read as")
    return Extent(spec, int(offset))
