"""Copy rows out of one sealed file, through a memory map or by plain reads, and notice when it changes underneath.

A file that is replaced by rename goes on being read as it was. One that was touched in any way since its inspection is
verified from end to end before another row of it is handed out, and refused unless it is the same cache. Never parses
HDF5 (`cache.guard` does).
Run: `softlabel cache verify FILE.h5`

Legend: R rows = (sample, view).
"""

import mmap
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from cache import durable
from cache.errors import CacheDamaged, CacheError
from cache.finite import refuse_not_finite
from cache.guard import Inspected, Stamp, inspect, unreadable_message
from cache.layout import Dims, Spec, is_big, runs
from cache.manifest import Manifest
from cache.verify import Block, sweep

# A file that changes at each of these many looks is being written right now.
_TRIES = 3
# Rows that lie apart are read one by one in a tight loop: batches of a loader. Larger ones are not worth a second copy.
_SMALL_BYTES = 1 << 14
_N_LOOKED_AT = 64


class Tables(Protocol):
    """What a reader knows without reading a row: of one file (`cache.guard.Inspected`), or of several."""

    @property
    def manifest(self) -> Manifest: ...
    @property
    def dims(self) -> Dims: ...
    @property
    def small(self) -> dict[str, np.ndarray]: ...


class RowSource(Protocol):
    """Where a reader's rows come from: one file (`RowFile`), or several (`cache.union`)."""

    def take(self, name: str, rows: slice | np.ndarray) -> np.ndarray: ...
    def damaged_blocks(self, names: Iterable[str] | None) -> list[Block]: ...
    def refuse_not_finite(self, names: Iterable[str] | None) -> None: ...
    def chunks(self, name: str) -> Iterator[memoryview]: ...
    def close(self) -> None: ...


class RowFile:
    """The open file that `inspected` describes; CacheDamaged where the path leads to another one by now.

    With `memory_map`, a row costs as much as in a `.npy` memory map; but the operating system ends a process that
    touches a mapped page which was cut off in that very moment. Plain reads never do, at about a microsecond a row.
    """

    def __init__(self, path: Path, inspected: Inspected, *, memory_map: bool) -> None:
        self._path, self._inspected = path, inspected
        self._map: mmap.mmap | None = None
        self._of_thread = threading.local()
        self._arrays: dict[str, np.ndarray] = {}
        self._stamp, self._checking = inspected.stamp, threading.Lock()
        try:
            self._file = durable.open_to_read(path)
            self._check_stamp()
        except (CacheDamaged, OSError) as error:
            raise self._explained(error) from error
        if memory_map:
            # Some network and FUSE drives cannot map a file: plain reads then.
            with suppress(OSError, ValueError):
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        for name, (spec, offset) in inspected.extents.items():
            if (is_big(name) or name == "samples/name") and self._map is not None:
                count = spec.n_bytes // spec.dtype.itemsize
                self._arrays[name] = np.frombuffer(self._map, spec.dtype, count, offset).reshape(spec.shape)

    def take(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Fresh, writable copies of rows of a big object, or of names; they are in range: a slice of step 1, or int64.

        Every row is from the sealed file, or it is a CacheDamaged: never some from another one.
        """
        try:
            for _ in range(_TRIES):
                # A mapped page is there as long as the file is as long; what else changed shows after the copy.
                if self._map is None or self._map.size() != self._stamp.n_bytes:
                    self._check_stamp()
                values = self._read(name, rows) if self._map is None else self._mapped(name, rows)
                if Stamp.of(self._file) == self._stamp:
                    return values
                self._check_stamp()
        except (CacheDamaged, OSError) as error:
            raise self._explained(error) from error
        raise CacheError(f"{self._path} is being written to at this moment: wait for the end of that, then start anew")

    def damaged_blocks(self, names: Iterable[str] | None) -> list[Block]:
        """As `cache.verify.sweep`; the tables and headers are looked at again where the file was touched."""
        try:
            self._check_stamp()
            return sweep(self._inspected, self.piece, names)
        except (CacheDamaged, OSError) as error:
            raise self._explained(error) from error

    def refuse_not_finite(self, names: Iterable[str] | None) -> None:
        """As `cache.finite.refuse_not_finite`, of the file as it was verified."""
        try:
            self._check_stamp()
        except (CacheDamaged, OSError) as error:
            raise self._explained(error) from error
        refuse_not_finite(self._path, self._inspected, self.piece, names)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The bytes of a big object in order; each piece is valid until the next one is asked for."""
        spec, offset = self._inspected.extents[name]
        try:
            yield from durable.chunks(self._file, offset, spec.n_bytes)
        except (CacheDamaged, OSError) as error:
            raise self._explained(error) from error

    def piece(self, offset: int, n_bytes: int) -> memoryview:
        """Some bytes of the file, mapped or read; valid until the next call in the same thread."""
        if self._map is not None:
            return memoryview(self._map)[offset : offset + n_bytes]
        return self._read_piece(offset, n_bytes)

    def close(self) -> None:
        """Let go of file and map; arrays that were handed out are copies and stay."""
        self._arrays.clear()
        self._map = None
        self._file.close()

    def __del__(self) -> None:
        with suppress(AttributeError):  # where it could not even be opened
            self.close()

    def _read_piece(self, offset: int, n_bytes: int) -> memoryview:
        if len(getattr(self._of_thread, "buffer", b"")) < n_bytes:  # kept: fresh pages cost as much as their checksum
            self._of_thread.buffer = bytearray(n_bytes)
        buffer = memoryview(self._of_thread.buffer)[:n_bytes]
        durable.read_exactly(self._file, buffer, offset)
        return buffer

    def _mapped(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        array = self._arrays[name]
        return array[rows].copy() if isinstance(rows, slice) else array.take(rows, axis=0)

    def _read(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        (dtype, shape), offset = self._inspected.extents[name]
        row_bytes = Spec(dtype, (1, *shape[1:])).n_bytes
        if isinstance(rows, slice):
            values = np.empty((rows.stop - rows.start, *shape[1:]), dtype)
            durable.read_exactly(self._file, values.reshape(-1).view("u1").data, offset + rows.start * row_bytes)
            return values
        values = np.empty((*rows.shape, *shape[1:]), dtype)
        flat, target = rows.reshape(-1), memoryview(values.reshape(-1).view("u1").data)
        if row_bytes <= _SMALL_BYTES and not (np.diff(flat[:_N_LOOKED_AT]) == 1).any():
            durable.read_each(self._file, (flat * row_bytes + offset).tolist(), row_bytes, target)
            return values
        for start, stop in runs(flat):
            durable.read_exactly(
                self._file, target[start * row_bytes : stop * row_bytes], offset + int(flat[start]) * row_bytes
            )
        return values

    def _check_stamp(self) -> None:
        """Verify the whole file again if it was touched; CacheDamaged if it is another one by now."""
        if Stamp.of(self._file) == self._stamp:
            return
        with self._checking:  # reading metadata moves the descriptor's position, which all threads share
            if Stamp.of(self._file) == self._stamp:
                return
            again = inspect(self._file, self._path, names=False)
            same = again.seal == self._inspected.seal and again.extents == self._inspected.extents
            if not same or sweep(again, self._read_piece):
                raise CacheDamaged("another cache")
            self._stamp = again.stamp

    def _explained(self, error: CacheDamaged | OSError) -> CacheError:
        if isinstance(error, CacheDamaged):
            return CacheDamaged(changed_message(self._path))
        assert isinstance(error, OSError)
        return CacheError(unreadable_message(self._path, error))


def changed_message(path: Path) -> str:
    """Why a reader gives up on a file that is another one by now."""
    return f"{path} was replaced by another cache, or written over, while in use: put it back, or start anew"
