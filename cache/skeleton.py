"""The HDF5 metadata of a cache file, made in memory: where each object lies, and which bytes say so.

Never touches a disk: a full disk inside libhdf5 ends in a crash at exit. Run: `softlabel cache build DATA -o t.h5`
"""

import os
from collections.abc import Callable, Mapping

import h5py

from cache.layout import Extent, Spec

# Only large objects start on a page: aligning all of them costs 120 kB a segment.
ALIGNMENT_THRESHOLD_BYTES = 65536
ALIGNMENT_INTERVAL_BYTES = 4096
# Checksummed metadata; 'latest' would mark a killed writer's file as never to be opened again.
LIBVER = ("v108", "v108")


class _Pieces:
    """A file in memory that keeps only what was written, not the holes between: enough for HDF5 metadata."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, bytes]] = []
        self.n_bytes = 0
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.n_bytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, buffer: bytes) -> int:
        self.pieces.append((self._at, bytes(buffer)))
        self._at += len(self.pieces[-1][1])
        self.n_bytes = max(self.n_bytes, self._at)
        return len(self.pieces[-1][1])

    def readinto(self, buffer: bytearray) -> int:
        target = memoryview(buffer).cast("B")
        target[:] = bytes(len(target))
        for offset, piece in self.pieces:
            start, stop = max(offset, self._at), min(offset + len(piece), self._at + len(target))
            if start < stop:
                target[start - self._at : stop - self._at] = piece[start - offset : stop - offset]
        self._at += len(target)
        return len(target)

    def read(self, n_bytes: int) -> bytes:
        buffer = bytearray(n_bytes)
        self.readinto(buffer)
        return bytes(buffer)

    def truncate(self, n_bytes: int) -> int:
        self.n_bytes = n_bytes
        return n_bytes

    def written(self) -> list[tuple[int, bytes]]:
        """(offset, bytes) of each stretch that was written, as it is now, in order; stretches do not touch."""
        stretches: list[tuple[int, int]] = []
        for start, stop in sorted((offset, offset + len(piece)) for offset, piece in self.pieces):
            if stretches and start <= stretches[-1][1]:
                start, before = stretches.pop()
                stop = max(stop, before)
            stretches.append((start, stop))
        found = []
        for start, stop in stretches:
            self.seek(start)
            found.append((start, self.read(stop - start)))
        return found

    def flush(self) -> None:
        """Nothing to flush; libhdf5 asks."""


def skeleton(specs: dict[str, Spec]) -> tuple[dict[str, Extent], list[tuple[int, bytes]], int]:
    """The HDF5 metadata of these objects: where each lies, the (offset, bytes) to write, the file's length in bytes."""
    memory = _Pieces()
    extents = {}
    options = {
        "libver": LIBVER,
        "alignment_threshold": ALIGNMENT_THRESHOLD_BYTES,
        "alignment_interval": ALIGNMENT_INTERVAL_BYTES,
    }
    with h5py.File(memory, "w", **options) as h5:
        link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        link.set_create_intermediate_group(True)
        for name, spec in sorted(specs.items()):
            assert all(spec.shape), f"{name} has a zero length"
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.CONTIGUOUS)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            plist.set_obj_track_times(False)
            space = h5py.h5s.create_simple(spec.shape)
            dataset = h5py.h5d.create(
                h5.id, name.encode(), h5py.h5t.py_create(spec.dtype), space, dcpl=plist, lcpl=link
            )
            extents[name] = Extent(spec, int(dataset.get_offset()))
    return extents, memory.written(), memory.n_bytes


def holes(
    extents: Mapping[str, Extent], file_bytes: int, piece: Callable[[int, int], memoryview]
) -> list[tuple[int, int]]:
    """(start, stop) of the bytes between objects and metadata and after them: zero in a file that `skeleton` laid out.

    `piece(offset, n_bytes)` gives bytes of the file. Empty for a file whose metadata are not the very ones that
    `skeleton` makes: which of its bytes another version of libhdf5 uses is not known.
    """
    expected, pieces, _ = skeleton({name: extent.spec for name, extent in extents.items()})
    if expected != dict(extents) or any(piece(offset, len(content)) != content for offset, content in pieces):
        return []
    used = [(offset, offset + spec.n_bytes) for spec, offset in extents.values()]
    used += [(offset, offset + len(content)) for offset, content in pieces]
    found, at = [], 0
    for start, stop in [*sorted(used), (file_bytes, file_bytes)]:
        if start > at:
            found.append((at, start))
        at = max(at, stop)
    return found
