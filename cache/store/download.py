"""Bring one object to this machine: piece by piece, from where an earlier try stopped, and compare its sha256.

Never opens it: what arrived is bytes, until they are the ones that the store's manifest names.
Run: `softlabel cache pull URL/ID -o t.h5`
"""

import hashlib
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache import durable
from cache.errors import CacheDamaged
from cache.store.entry import Entry
from cache.store.files import Files, Progress, check_room
from cache.store.trouble import ObjectRefused, is_passing

log = logging.getLogger(__name__)

_FIRST_PIECE, _LEAST_PIECE, _MOST_PIECE = 8 << 20, 64 << 10, 64 << 20
_QUICK_S, _SLOW_S = 0.7, 4.0
_HASHED_BYTES = 4 << 20


def download(files: Files, entry: Entry, partial: Path, progress: Progress) -> None:
    """Fill `partial` with the entry's data object; it has its sha256 then, and is on the disk.

    What stands in it from an earlier try is kept. StoreError where the store has other bytes, and whose fault that
    looks like; the partial file is gone then. After any other error it stays.
    """
    name = entry.data_name
    found = files.size(name)
    if found != entry.n_bytes:
        has = "nothing" if found is None else f"{found:,} bytes"
        raise ObjectRefused(
            f"{files.shown(name)}: {has} stands there, its manifest promises {entry.n_bytes:,} bytes: not pulled; "
            f"{files.remedy}"
        )
    wrong: list[str] = []
    while True:
        digest = _Filling(files, entry, partial, progress).run()
        if digest == entry.sha256:
            return
        partial.unlink(missing_ok=True)
        wrong.append(digest)
        if len(wrong) > 1:
            break
        log.warning("what arrived of %s has another sha256 than its manifest says: once more", files.shown(name))
    whose = (
        f"twice the same ones, so it was changed or damaged in the store: {files.remedy}"
        if len(set(wrong)) == 1
        else "other ones each time, so they change on the way, or on the disk of one of the two machines: try again"
    )
    raise ObjectRefused(f"{files.shown(name)} is refused, unopened: not the bytes that its manifest names; {whose}")


@dataclass
class _Filling:
    """One pass over the object."""

    files: Files
    entry: Entry
    partial: Path
    progress: Progress
    piece_bytes: int = field(default_factory=lambda: _FIRST_PIECE)

    def run(self) -> str:
        """Write what is missing; the sha256 of all, in hex."""
        entry, digest = self.entry, hashlib.sha256()
        with durable.disk_errors(self.partial, entry.n_bytes), open(self.partial, "a+b", buffering=0) as file:
            there = file.seek(0, 2)
            if there > entry.n_bytes:
                file.truncate(0)
                there = 0
            if there:
                log.info("going on at %s of %s bytes", f"{there:,}", f"{entry.n_bytes:,}")
            check_room(self.partial.parent, entry.n_bytes - there)
            for at in range(0, there, _HASHED_BYTES):
                piece = memoryview(bytearray(min(_HASHED_BYTES, there - at)))
                try:
                    durable.read_exactly(file, piece, at)
                except CacheDamaged:  # cut meanwhile: the sum says so
                    break
                digest.update(piece)
            self.progress(there)
            while there < entry.n_bytes:
                content = self._next_piece(there, min(entry.n_bytes, there + self.piece_bytes))
                left = memoryview(content)
                while left:
                    left = left[file.write(left) :]
                digest.update(content)
                there += len(content)
                self.progress(len(content))
            durable.fsync_file(file.fileno())
        return digest.hexdigest()

    def _next_piece(self, start: int, stop: int) -> bytes:
        """The bytes from `start` on, up to `stop`; fewer of them after each break, so that a bad line gets on, too."""
        patience, failures = self.files.patience, 0
        with self.files.explained():
            while True:
                started = time.monotonic()
                try:
                    content = self.files.read_once(self.entry.data_name, start, stop)
                except Exception as error:
                    failures += 1
                    if not is_passing(error) or failures >= patience.tries:
                        raise
                    self.piece_bytes = max(_LEAST_PIECE, (stop - start) // 2)
                    stop = min(stop, start + self.piece_bytes)
                    time.sleep(patience.pause(failures))
                    continue
                self._adapt(time.monotonic() - started, is_clean=not failures)
                return content

    def _adapt(self, took_s: float, *, is_clean: bool) -> None:
        """Few requests on a quick line; on a slow one little that a break can lose."""
        if is_clean and took_s < _QUICK_S:
            self.piece_bytes = min(_MOST_PIECE, self.piece_bytes * 2)
        elif took_s > _SLOW_S:
            self.piece_bytes = max(_LEAST_PIECE, self.piece_bytes // 2)


def table_bytes(files: Files, entry: Entry, name: str) -> Any:
    """The bytes of one small table of an object, checked against the sha256 in its manifest."""
    place = entry.tables[name]
    content = files.read(entry.data_name, place.offset, place.offset + place.n_bytes)
    if hashlib.sha256(content).hexdigest() != place.sha256:
        raise ObjectRefused(
            f"{files.shown(entry.data_name)}: its {name} is not what its manifest says: refused; {files.remedy}"
        )
    return content
