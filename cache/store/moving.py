"""Uploads of one go: plain where an object appears when its upload ends, else under a temporary name, then moved.

Never goes on with an unfinished one. Run: `softlabel cache push t.h5 gs://BUCKET/PATH`
"""

import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cache.store.files import Files, Progress
from cache.store.trouble import StoreError

UNFINISHED = ".part"


class AtomicFiles(Files):
    """A place where an object is there once its upload has ended, and not before."""

    def write_small(self, name: str, content: bytes) -> None:
        """One upload."""
        self.ask(lambda: self.fs.pipe_file(self.path(name), content))

    def upload(self, source: Path, name: str, sha256: str, progress: Progress, *, replace: bool = False) -> None:
        """One upload, from the start after a break."""
        self._put(source, self.path(name), progress)

    def _put(self, source: Path, path: str, progress: Progress) -> None:
        def put() -> None:
            self.fs.put_file(str(source), path)

        self.ask(put)
        progress(source.stat().st_size)


class MovingFiles(AtomicFiles):
    """A place that shows files while they are being written: they get their names when they are whole."""

    def options(self) -> dict[str, Any]:
        """None that not every backend takes: that of ssh hands all of them on to its connection."""
        return {}

    def write_small(self, name: str, content: bytes) -> None:
        """Under a temporary name, then moved in the place of another one."""
        self._moved(name, lambda temp: self.ask(lambda: self.fs.pipe_file(temp, content)), len(content))

    def upload(self, source: Path, name: str, sha256: str, progress: Progress, *, replace: bool = False) -> None:
        """Under a temporary name, then moved; from the start after a break."""
        n_bytes = source.stat().st_size
        self._moved(name, lambda temp: self._put(source, temp, progress), n_bytes)

    def _moved(self, name: str, write: Callable[[str], None], n_bytes: int) -> None:
        folder, _, last = name.rpartition("/")
        temp = f"{folder}/.{last}.{secrets.token_hex(8)}{UNFINISHED}"
        self.ask(lambda: self.fs.makedirs(self.path(folder), exist_ok=True))
        try:
            write(self.path(temp))
            if (found := self.size(temp)) != n_bytes:
                raise StoreError(f"{self.address.shown} has {found} of {n_bytes:,} bytes after an upload: try again")
            self.ask(lambda: self.fs.mv(self.path(temp), self.path(name)))
        except BaseException:
            with suppress(Exception):
                self.fs.rm_file(self.path(temp))
            raise
