"""Start a command on a disk that becomes full before one of its writes, and find out what it wrote until then."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import durable
from cache.errors import CacheDiskFull
from reliability import forks
from reliability.contents import digest_of
from reliability.disks import FROM_THE_START, SmallDisk, Squeeze


@dataclass(frozen=True)
class Attempt:
    """One start of a command and what came of it."""

    exit_code: int | None
    output: str
    entries: list[dict[str, Any]]
    """The probe's journal."""

    @property
    def failed_write(self) -> int | None:
        """Number of the write that found the disk full."""
        return next((int(entry["failed"]) for entry in self.entries if "failed" in entry), None)

    @property
    def published(self) -> dict[str, str]:
        """Path in the disk -> sha256 of what got its final name last."""
        return {entry["published"]: entry["digest"] for entry in self.entries if "published" in entry}


class Probe:
    """Lives in the command's process: tells which file of the disk is written when, and fills it before one of them."""

    def __init__(self, disk: SmallDisk, squeeze: Squeeze | None) -> None:
        self._disk, self._squeeze = disk, squeeze
        self._number, self._name, self._free_bytes = 0, "", disk.free_bytes

    def install(self) -> None:
        """Wrap the functions that write, in this process."""
        if self._squeeze is not None and self._squeeze.write == FROM_THE_START:
            self._disk.squeeze(self._squeeze.free_bytes)
        durable.disk_errors = self._watched(durable.disk_errors)
        for publish in ("publish_new", "publish_replace"):
            setattr(durable, publish, self._noted(getattr(durable, publish)))

    def _note(self, **entry: Any) -> None:
        os.write(1, b"\x1e" + json.dumps(entry).encode() + b"\n")

    def _watched(self, disk_errors: Callable[[Path, int], AbstractContextManager[None]]) -> Any:
        @contextmanager
        def watched(path: Path, needed_bytes: int) -> Iterator[None]:
            self._starts(path)
            try:
                with disk_errors(path, needed_bytes):
                    yield
            except CacheDiskFull:
                self._note(failed=self._number)
                raise

        return watched

    def _starts(self, path: Path) -> None:
        name = re.sub(r"\.[0-9a-f]{16}\.tmp$", "", path.name)
        if name == self._name or not self._is_there(path):
            return
        self._number, self._name = self._number + 1, name
        self._note(write=self._number, name=name, used=self._free_bytes - self._disk.free_bytes)
        if self._squeeze is not None and self._squeeze.write == self._number:
            self._disk.squeeze(self._squeeze.free_bytes)

    def _is_there(self, path: Path) -> bool:
        """What a command remembers of teachers and images stands in the user's cache folder."""
        return path.absolute().is_relative_to(self._disk.root)

    def _noted(self, publish: Callable[[Path, Path], Any]) -> Callable[[Path, Path], Any]:
        def noted(temp: Path, final: Path) -> Any:
            digest, n_bytes = digest_of(temp), temp.stat().st_size
            is_new = publish(temp, final)
            if is_new is not False and self._is_there(final):
                path = str(final.relative_to(self._disk.root))
                self._note(published=path, digest=digest, n_bytes=n_bytes, by=self._number)
            return is_new

        return noted


def attempt(disk: SmallDisk, words: list[str], squeeze: Squeeze | None = None) -> Attempt:
    """Run one command line in a forked process, to its end."""
    exit_code, told = forks.finish(words, lambda: Probe(disk, squeeze).install())
    entries = [json.loads(line) for line in re.findall(rb"\x1e([^\n]*)\n", told)]
    return Attempt(exit_code, re.sub(rb"\x1e[^\n]*\n", b"", told).decode("utf-8", "replace"), entries)


def attempt_in_own_process(disk: SmallDisk, words: list[str], squeeze: Squeeze) -> Attempt:
    """The same in a new interpreter without a probe, which also shows how it ends: as a user runs it."""
    assert squeeze.write == FROM_THE_START
    done = subprocess.run(
        [sys.executable, "-m", "softlabel", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        timeout=forks.HANG_S, preexec_fn=lambda: disk.squeeze(squeeze.free_bytes),
    )  # fmt: skip
    return Attempt(done.returncode, done.stdout.decode("utf-8", "replace"), [])
