"""Locks, fsync, atomic publishing and disk space: all that only POSIX has, each with its fallback.

Never knows what is in a file. Every write of this package goes through here, which is also where tests pull the plug.
Run: `softlabel cache build DATA -o t.h5`.
"""

import errno
import glob
import logging
import os
import secrets
import socket
import stat
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import FileIO
from pathlib import Path

from cache.errors import CacheBusy, CacheDamaged, CacheDiskFull, CacheError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

TEMP_SUFFIX = ".tmp"
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
# macOS has two numbers for "not supported"; Windows' "incorrect function" arrives as EINVAL.
_NO_SUPPORT = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_NO_LINKS = (*_NO_SUPPORT, errno.EPERM, errno.EMLINK, errno.EACCES)
_NO_LOCKS = (*_NO_SUPPORT, errno.ENOLCK)
_BLOCK_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 18
# Windows locks byte ranges and forbids reading them: lock one far behind the text.
_WINDOWS_LOCK_AT = 1 << 30
# Each lost race means that another holder came and went.
_LOCK_TRIES = 100

_held_fds: set[int] = set()
_SEEKING = threading.Lock()


def temp_name(final: Path, folder: Path | None = None) -> Path:
    """A name for the unfinished file: random, since process ids repeat in containers."""
    return (folder or final.parent) / f"{final.name}.{secrets.token_hex(8)}{TEMP_SUFFIX}"


@contextmanager
def disk_errors(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turn 'no space left' and its kin into a CacheDiskFull that names the bytes; other OSErrors into a CacheError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CacheError):
            raise
        if error.errno in _FULL:
            raise CacheDiskFull(
                f"no room for {needed_bytes:,} bytes in {path.parent.absolute()} ({error.strerror}): "
                "what is finished stays; free some space, then run the same command again"
            ) from error
        raise CacheError(f"cannot write {path}: {error.strerror or error}") from error


def allocate(fd: int, size_bytes: int) -> None:
    """Reserve the first `size_bytes` of a new file, so that a full disk is told before any work, in milliseconds."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size_bytes)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    zeros = bytes(_BLOCK_BYTES)
    os.lseek(fd, 0, os.SEEK_SET)
    left = size_bytes
    while left:
        left -= os.write(fd, zeros[:left])


def fsync_file(fd: int) -> None:
    """Bring a file's bytes to the disk; macOS needs its own call to reach beyond the drive's cache."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        with suppress(OSError):
            fcntl.fcntl(fd, full_sync)
            return
    os.fsync(fd)


def fsync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can (Windows and some network disks cannot)."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder, if it is not there, and bring its name to the disk."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return
    fsync_folder(folder.parent)


def open_to_read(path: Path) -> FileIO:
    """A regular file, unbuffered; OSError for anything else, such as a FIFO, which would be waited for."""
    _check_regular(os.stat(path), path)  # opening a device can already do something
    file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
    try:
        _check_regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_exactly(file: FileIO, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from `offset` on, whatever the file's own position; CacheDamaged where the file ends before."""
    with _SEEKING if not hasattr(os, "preadv") else nullcontext():
        while buffer:
            if hasattr(os, "preadv"):
                n_bytes = os.preadv(file.fileno(), [buffer], offset)
            else:  # Windows
                file.seek(offset)
                n_bytes = file.readinto(buffer) or 0
            if not n_bytes:
                raise CacheDamaged(f"{file.name} ends before byte {offset + len(buffer):,}")
            buffer, offset = buffer[n_bytes:], offset + n_bytes


def read_each(file: FileIO, offsets: Collection[int], n_bytes: int, target: memoryview) -> None:
    """Fill `target` with pieces of equal length from many places; CacheDamaged where the file ends before one.

    For small pieces far apart: a call of `read_exactly` for each takes three times as long.
    """
    if hasattr(os, "pread"):
        read, fd = os.pread, file.fileno()
        found = b"".join([read(fd, n_bytes, offset) for offset in offsets])
        if len(found) == len(target):
            target[:] = found
            return
    # A piece came short: of a file that ends before it, or where a system reads less than it is asked for.
    for number, offset in enumerate(offsets):
        read_exactly(file, target[number * n_bytes : (number + 1) * n_bytes], offset)


def chunks(file: FileIO, offset: int, n_bytes: int) -> Iterator[memoryview]:
    """The bytes from `offset` on, in pieces that are valid until the next one is asked for."""
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, n_bytes)))
    for start in range(0, n_bytes, _CHUNK_BYTES):
        piece = buffer[: min(len(buffer), n_bytes - start)]
        read_exactly(file, piece, offset + start)
        yield piece


def publish_new(temp: Path, final: Path) -> bool:
    """Give a finished, synced file its name unless the name exists; False if it did. The temp name is gone after."""
    try:
        os.link(temp, final)
    except FileExistsError:
        remove(temp)
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links here (exFAT, some network disks): the lock, not the file system, then keeps writers apart.
        if final.exists():
            remove(temp)
            return False
        os.rename(temp, final)
    fsync_folder(final.parent)
    with suppress(FileNotFoundError):
        remove(temp)
    return True


def publish_replace(temp: Path, final: Path) -> None:
    """Put a finished, synced file in the place of another; readers that mapped the old one keep it."""
    os.replace(temp, final)
    fsync_folder(final.parent)


@contextmanager
def unpublished(final: Path, content: bytes) -> Iterator[Path]:
    """A whole, synced file under a temporary name, to be looked at and published inside, and gone after."""
    temp = temp_name(final)
    try:
        with disk_errors(final, len(content)), open(temp, "xb") as file:
            file.write(content)
            file.flush()
            fsync_file(file.fileno())
        yield temp
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)


@contextmanager
def held(final: Path) -> Iterator[None]:
    """Inside, this process alone makes this file; CacheBusy where another one does. What killed ones left goes."""
    lock = Lock.acquire(final.with_name(f"{final.name}.lock"))
    try:
        for unfinished in final.parent.glob(f"{glob.escape(final.name)}.*{TEMP_SUFFIX}"):
            remove(unfinished)
        yield
    finally:
        remove(lock.path)
        lock.release()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a small file: whole and on the disk, or not at all."""
    with unpublished(path, content) as temp, disk_errors(path, len(content)):
        publish_replace(temp, path)


def remove(path: Path) -> None:
    """Remove one name."""
    os.unlink(path)


class Lock:
    """An exclusive lock on a file, held by this process and nobody it starts; the kernel releases it on death.

    The file names its holder for people. It may be removed by the holder, together with its folder.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self._fd = path, fd

    @classmethod
    def acquire(cls, path: Path) -> "Lock":
        """Take the lock at once, making the file and its folder, or raise CacheBusy naming host and process id."""
        for _ in range(_LOCK_TRIES):
            with disk_errors(path, 4096):
                try:
                    make_folder(path.parent)
                    fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
                except FileNotFoundError:
                    continue  # the last holder removed the folder between our two calls
            try:
                if not _try_lock(fd, path):
                    raise CacheBusy(_busy_message(path))
                # Whoever waited on a file that its holder removed holds nothing: the name must still lead to it.
                if _same_file(fd, path):
                    with suppress(OSError):  # on a full disk the lock holds without its text
                        os.ftruncate(fd, 0)
                        os.write(fd, f"host {socket.gethostname()} pid {os.getpid()}\n".encode())
                    _held_fds.add(fd)
                    return cls(path, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise CacheBusy(_busy_message(path))

    def release(self) -> None:
        """Give the lock back; once is enough, more is harmless."""
        if self._fd in _held_fds:
            _held_fds.discard(self._fd)
            os.close(self._fd)
        self._fd = -1


def _try_lock(fd: int, path: Path) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            os.lseek(fd, _WINDOWS_LOCK_AT, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        if error.errno not in _NO_LOCKS:
            raise CacheError(f"cannot lock {path}: {error.strerror}") from error
        log.warning("%s: this file system has no locks; make sure that only one process writes this output", path)
    return True


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _busy_message(path: Path) -> str:
    try:
        holder = path.read_text("utf-8", "replace").strip()
    except OSError:
        holder = ""
    return (
        f"another process is writing this output ({holder or 'holder unknown'}, lock {path}): "
        f"wait for it, stop it, or choose another -o"
    )


def _close_in_child() -> None:
    # A forked worker that kept the descriptor would keep the lock after its parent was killed.
    for fd in _held_fds:
        with suppress(OSError):
            os.close(fd)
    _held_fds.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
