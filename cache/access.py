"""Copy rows out of one sealed file, through a memory map or by plain reads, and notice when it changes underneath.

A file that is replaced by rename goes on being read as it was. One that is written over in place is verified from end
to end before another row of it is handed out, and refused unless it is the same cache. Never parses HDF5
(`cache.guard` does).
Run: `softlabel cache verify FILE.h5`

Legend: R rows = (sample, view).
"""

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from cache import durable
from cache.errors import CacheDamaged, CacheError
from cache.guard import Inspected, inspect
from cache.layout import Spec, is_big, runs
from cache.verify import sweep

# A file that changes at each of these many looks is being written right now.
_TRIES = 3


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
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed by close)
            self._stamp = self._stamp_now()
            self._check_seal()
        except (CacheDamaged, OSError) as error:
            raise self._explained(error) from error
        if memory_map:
            # Some network and FUSE drives cannot map a file: plain reads then.
            with suppress(OSError, ValueError):
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        for name, (spec, offset) in inspected.extents.items():
            if is_big(name) and self._map is not None:
                count = spec.n_bytes // spec.dtype.itemsize
                self._arrays[name] = np.frombuffer(self._map, spec.dtype, count, offset).reshape(spec.shape)

    def take(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Fresh, writable copies of rows of a big object; `rows` are in range: a slice of step 1, or int64.

        Every row is from the sealed file, or it is a CacheDamaged: never some from another one.
        """
        try:
            for _ in range(_TRIES):
                # A mapped page is there as long as the file is as long; what else changed shows after the copy.
                if self._map is None or self._map.size() != self._stamp[0]:
                    self._check_stamp()
                values = self._read(name, rows) if self._map is None else self._mapped(name, rows)
                if self._stamp_now() == self._stamp:
                    return values
                self._check_stamp()
            raise CacheDamaged("it is being written")
        except (CacheDamaged, OSError) as error:
            raise self._explained(error) from error

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
        wanted = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        values = np.empty((*wanted.shape, *shape[1:]), dtype)
        flat, target = wanted.reshape(-1), memoryview(values.reshape(-1).view("u1").data)
        for start, stop in runs(flat):
            durable.read_exactly(
                self._file, target[start * row_bytes : stop * row_bytes], offset + int(flat[start]) * row_bytes
            )
        return values

    def _stamp_now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def _check_stamp(self) -> None:
        """Verify the whole file again if it was touched; CacheDamaged if it is another one by now."""
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        again = inspect(self._file, self._path)
        same = again.seal == self._inspected.seal and again.extents == self._inspected.extents
        if not same or sweep(again, self._read_piece):
            raise CacheDamaged("another cache")
        self._stamp = stamp

    def _explained(self, error: Exception) -> CacheError:
        if isinstance(error, CacheDamaged):
            return CacheDamaged(changed_message(self._path))
        reason = error.strerror if isinstance(error, OSError) else error
        return CacheError(f"cannot read {self._path} ({reason}): is its drive still there?")

    def _check_seal(self) -> None:
        seal = self.piece(self._inspected.extents["seal"].offset, 32)
        if self._stamp[0] != self._inspected.file_bytes or bytes(seal) != self._inspected.seal:
            raise CacheDamaged("another cache")


def changed_message(path: Path) -> str:
    """Why a reader gives up on a file that is another one by now."""
    return f"{path} was replaced by another cache, or written over, while in use: put it back, or start anew"
