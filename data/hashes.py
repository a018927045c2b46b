"""Content keys of files that were hashed before, known by path, size, times and inode. Decides no sample's identity.

A convenience: whatever is wrong with its file (damaged, locked, newer, read-only, a full disk), images are hashed anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_RACY_S = 2.0
"""A file that changed so shortly before it was read may change once more without another time stamp."""
_KEPT_DAYS = 90
"""Hashes that were not asked for since are forgotten."""
_MAX_FILES = 2_000_000
"""About 300 MB; beyond, those that were not asked for the longest time are forgotten."""
_WAIT_S = 0.5
"""For another process that is writing."""
_DAY_S = 86_400
_KEY_BYTES = 16


class RememberedHashes:
    """The sqlite file at `path`, made when something is to be remembered; None remembers nothing.

    Each call is a transaction of its own, so that processes share the file and an interrupt loses one batch.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._connection = path, None if path is None else _opened(path)
        self._today = int(time.time() // _DAY_S)

    def __enter__(self) -> RememberedHashes:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def find(self, files: Mapping[str, os.stat_result]) -> dict[str, bytes]:
        """Path -> key, of those (at most 999) that are as they were when they were hashed."""
        if self._connection is None or not files:
            return {}
        name_of = {_name(path): path for path in files}
        marks = ",".join("?" * len(name_of))
        found = self._run(f"SELECT name, stamp, day, key FROM hashes_1 WHERE name IN ({marks})", list(name_of))
        keys: dict[str, bytes] = {}
        old = []
        for name, stamp, day, stored in found:
            path = name_of[name]
            if stamp != _stamp(files[path]) or not isinstance(stored, bytes) or stored != _sealed(name, stamp, stored):
                continue
            keys[path] = stored[:_KEY_BYTES]
            if day != self._today:
                old.append((self._today, name))
        if old:
            self._write("UPDATE hashes_1 SET day = ? WHERE name = ?", old)
        return keys

    def add(self, hashed: Mapping[str, tuple[os.stat_result, bytes]]) -> None:
        """Remember (status before the file was read, key) of each path that is still so and did not change just now."""
        if self._connection is None or not hashed:
            return
        newest_ns = int((time.time() - _RACY_S) * 1e9)
        rows = []
        for path, (status, key) in hashed.items():
            with contextlib.suppress(OSError):
                stamp = _stamp(status)
                if max(status.st_ctime_ns, status.st_mtime_ns) < newest_ns and _stamp(os.stat(path)) == stamp:
                    name = _name(path)
                    rows.append((name, stamp, self._today, _sealed(name, stamp, key)))
        if rows:
            self._write("INSERT OR REPLACE INTO hashes_1 VALUES (?, ?, ?, ?)", rows)
            self._forget()

    def _forget(self) -> None:
        """Once a day: it looks at every row."""
        if self._run("PRAGMA user_version") in ([], [(self._today,)]):
            return
        self._write("DELETE FROM hashes_1 WHERE day < ?", [(self._today - _KEPT_DAYS,)])
        oldest = "SELECT name FROM hashes_1 ORDER BY day DESC LIMIT -1 OFFSET ?"
        self._write(f"DELETE FROM hashes_1 WHERE name IN ({oldest})", [(_MAX_FILES,)])
        self._run(f"PRAGMA user_version = {self._today}")

    def _run(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return [] if self._connection is None else self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            self._give_up(error)
            return []

    def _write(self, query: str, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            if self._connection is not None:
                with self._connection:
                    self._connection.executemany(query, rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        self._close()
        _tell(self._path, error)

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _opened(path: Path) -> sqlite3.Connection | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_WAIT_S)
    except (OSError, sqlite3.Error) as error:
        _tell(path, error)
        return None
    try:
        # A later version with other columns names its table anew: both then live in one file.
        connection.execute(
            "CREATE TABLE IF NOT EXISTS hashes_1 "
            "(name BLOB PRIMARY KEY, stamp TEXT, day INTEGER, key BLOB) WITHOUT ROWID"
        )
    except sqlite3.Error as error:
        connection.close()
        _tell(path, error)
        return None
    return connection


def _tell(path: Path | None, error: Exception) -> None:
    """Into the debug log; a file that is damaged (not locked or full) is removed: the next scan makes a new one."""
    log.debug("hashes are not remembered in %s: %s", path, error)
    if path is not None and type(error) is sqlite3.DatabaseError:
        with contextlib.suppress(OSError):
            path.unlink()


def _name(path: str) -> bytes:
    return os.fsencode(os.path.abspath(path))


def _stamp(status: os.stat_result) -> str:
    """As text: an inode may have more bits than sqlite's integers."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _sealed(name: bytes, stamp: str, key: bytes) -> bytes:
    """The key with a checksum: sqlite has none, and a wrong key would be told as a file that changed."""
    key = key[:_KEY_BYTES]
    return key + zlib.crc32(name + stamp.encode() + key).to_bytes(4, "big")
