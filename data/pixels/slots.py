"""A file of pixels in slots, each absent or whole: processes fill it together, and none is ever shown wrong ones.

Never knows what the pixels are of. What is written is a convenience: a full disk, a kill, a power cut, a flipped bit or
a file that somebody cuts off or removes cost the time to make the pixels again, and no more. Files are read, not
mapped: the system ends a process by a signal that touches a mapped page of a file which was cut off.

    header (magic, JSON of all that the pixels depend on, zeros up to a multiple of 4096)
    uint32 [slots]: 0, or the checksum of the slot's bytes, written after them; zeros up to a multiple of 4096
    the bytes of each slot, one after another; a slot that was never written takes no disk where files can have holes
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import stat
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

SUFFIX = ".pixels"
_MAGIC = b"softlabel pixels 1\n"
_PAGE = 4096
_SPARED_BYTES = 200_000_000
"""Disk that is left to others: the state of the run is saved on it, too."""
_LOOKS_EVERY = 256
"""Writes between two looks at the disk's room."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EINVAL)


def header_of(identity: Mapping[str, Any]) -> bytes:
    """The first bytes of a file whose pixels depend on exactly this."""
    text = json.dumps(identity, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()
    return _padded(_MAGIC + text + b"\n")


def checksum(content: memoryview) -> int:
    """Of the bytes of a slot; never 0, which says that there are none."""
    return zlib.crc32(content) or 1


class SlotFile:
    """The file at `path`, opened when it is first asked for; absent where its header or size is another one.

    `starts` are the offsets of the slots and of their end, int64 [slots + 1], or one number of bytes for all.
    Nothing is written, nor is any folder made, before `begin`. Threads may share it; pickles as its arguments.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], n_slots: int, starts: NDArray[np.int64] | int) -> None:
        self.path, self.n_slots = path, n_slots
        self._identity, self._starts = dict(identity), starts
        self._header = header_of(identity)
        self._data_at = len(self._header) + _up(4 * n_slots)
        end = starts * n_slots if isinstance(starts, int) else int(starts[-1])
        self.n_bytes = self._data_at + end
        self._writes = self._tried_to_write = False
        self._n_written = 0
        # Of several only the last one is used, but none is closed before the end: a thread may be reading from it.
        self._fds: list[int] = []
        self._lock = threading.RLock()
        self._checks = np.zeros(n_slots, "<u4")
        self._open(os.O_RDONLY)

    def begin(self) -> None:
        """From now on what is missing may be written."""
        self._writes = True

    def stands(self) -> NDArray[np.bool_]:
        """Which slots somebody wrote, bool [slots]; whether they are sound shows when they are read."""
        return self._checks != 0

    def read(self, slot: int, into: memoryview) -> bool:
        """The bytes of a slot, exactly as many as it has; False where it is absent, damaged or cannot be read."""
        if not self._fds:
            return False
        try:
            check = int(self._checks[slot]) or self._looked_up(slot)
            if not check:
                return False
            return _pread(self._fds[-1], into, self._start(slot)) == len(into) and checksum(into) == check
        except OSError as error:
            log.debug("slot %d of %s cannot be read: %s", slot, self.path, error)
            return False

    def lacks(self, slot: int) -> bool:
        """Whether nobody wrote a slot yet, and this process may do so."""
        return self._writes and not self._checks[slot] and not self._looked_up(slot)

    def write(self, slot: int, content: memoryview) -> None:
        """Keep the bytes of a slot, if that can be done."""
        try:
            if not self._may_write():
                return
            check = checksum(content)
            _pwrite(self._fds[-1], content, self._start(slot))
            _pwrite(self._fds[-1], memoryview(check.to_bytes(4, "little")), len(self._header) + 4 * slot)
            self._checks[slot] = check
        except OSError as error:
            self._stop_writing(error.strerror or str(error))

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            while self._fds:
                os.close(self._fds.pop())

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self._identity, self.n_slots, self._starts, self._writes)

    def _may_write(self) -> bool:
        with self._lock:
            if self._writes and not self._tried_to_write:
                self._tried_to_write = True
                self._open_to_write()
            if self._writes and self._n_written % _LOOKS_EVERY == 0:
                free_bytes = shutil.disk_usage(self.path.parent).free
                if free_bytes < _SPARED_BYTES:
                    self._stop_writing(f"only {free_bytes / 1e6:,.0f} MB are left there")
            self._n_written += 1
            return self._writes

    def _start(self, slot: int) -> int:
        starts = self._starts
        return self._data_at + (starts * slot if isinstance(starts, int) else int(starts[slot]))

    def _looked_up(self, slot: int) -> int:
        """The checksum of a slot that another process may have written meanwhile."""
        found = bytearray(4)
        if not self._fds or _pread(self._fds[-1], memoryview(found), len(self._header) + 4 * slot) < 4:
            return 0
        self._checks[slot] = check = int.from_bytes(found, "little")
        return check

    def _open(self, flags: int) -> bool:
        """Whether the file there is this one; it is open then."""
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):  # opening a pipe waits, opening a device may do something
                return False
            fd = os.open(self.path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        except OSError:
            return False
        try:
            found = bytearray(len(self._header))
            is_ours = os.fstat(fd).st_size == self.n_bytes and _pread(fd, memoryview(found), 0) == len(found)
            is_ours = is_ours and found == self._header
            if is_ours:
                _pread(fd, memoryview(self._checks.view("u1").data), len(self._header))
        except OSError:
            is_ours = False
        if not is_ours:
            os.close(fd)
            return False
        self._fds.append(fd)
        return True

    def _open_to_write(self) -> None:
        """The file at its place, made anew where it is absent or damaged."""
        if self._open(os.O_RDWR):
            return
        if self._open(os.O_RDONLY):
            self._stop_writing("others may only read it")
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temp = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.tmp")
        try:
            with open(temp, "xb") as file:
                file.write(self._header)
                file.truncate(self.n_bytes)
                file.flush()
                os.fsync(file.fileno())
            self._publish(temp)
        finally:
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)
        if not self._open(os.O_RDWR):
            raise OSError(errno.EIO, "another file came in its place")

    def _publish(self, temp: Path) -> None:
        """Give the new file its name, unless another process just did so; a damaged one is replaced."""
        try:
            os.link(temp, self.path)
            return
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not self.path.exists():
                os.rename(temp, self.path)
                return
        if not self._open(os.O_RDWR):
            log.info("notice   %s is damaged, or no file of this program: it is made anew", self.path)
            os.replace(temp, self.path)

    def _stop_writing(self, reason: str) -> None:
        with self._lock:
            told, self._writes = not self._writes, False
        if not told:
            log.warning("pixels are no longer kept in %s (%s): the run goes on without", self.path, reason)


def _reopened(
    path: Path, identity: Mapping[str, Any], n_slots: int, starts: NDArray[np.int64] | int, writes: bool
) -> SlotFile:
    file = SlotFile(path, identity, n_slots, starts)
    if writes:
        file.begin()
    return file


def _pread(fd: int, into: memoryview, offset: int) -> int:
    """How many bytes were there to be read."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [into], offset)
    with _SEEKING:  # Windows
        os.lseek(fd, offset, os.SEEK_SET)
        found = os.read(fd, len(into))
    into[: len(found)] = found
    return len(found)


def _pwrite(fd: int, content: memoryview, offset: int) -> None:
    while content:
        if hasattr(os, "pwrite"):
            n_bytes = os.pwrite(fd, content, offset)
        else:  # Windows
            with _SEEKING:
                os.lseek(fd, offset, os.SEEK_SET)
                n_bytes = os.write(fd, content)
        content, offset = content[n_bytes:], offset + n_bytes


_SEEKING = threading.Lock()


def _up(n_bytes: int) -> int:
    return -(-n_bytes // _PAGE) * _PAGE


def _padded(content: bytes) -> bytes:
    return content.ljust(_up(len(content)), b"\0")
