"""Pull the plug of a build at one named step, from inside its process, and keep a journal of what it did until then."""

import inspect
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cache import SegmentedWriter, durable
from cache.fill import NewFile
from cache.workspace import LOCK_NAME, PLAN_NAME, SEGMENT_SUFFIX, Workspace
from reliability.contents import digests
from reliability.plans import Kill


class Plug:
    """Lives in the build's process: keeps a journal of what it does, and pulls the plug at one named step."""

    def __init__(self, out: Path, journal: Path, kill: Kill | None) -> None:
        self._out, self._workspace, self._kill = out, Workspace(out), kill
        self._journal_fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._passages = self._parts_removed = 0
        self._file = self._publishing = ""

    def install(self) -> None:
        """Wrap the functions that make the steps, in this process."""
        passed, publishes = self._passed, self._publishes
        wrap(durable.Lock, "acquire", after=lambda *_: passed("lock taken"))
        wrap(durable, "write_atomic", after=lambda path, *_: path.name == PLAN_NAME and passed("plan written"))
        wrap(NewFile, "__init__", before=self._file_starts)
        wrap(durable, "allocate", after=lambda *_: passed(f"{self._file} allocated"))
        wrap(NewFile, "put", before=self._put_starts)
        wrap(
            durable, "fsync_file",
            before=lambda *_: passed(f"{self._file} written, not synced"),
            after=lambda *_: passed(f"{self._file} synced, not published"),
        )  # fmt: skip
        wrap(durable, "publish_new", before=lambda *_: publishes(self._file), after=lambda *_: publishes(""))
        wrap(
            durable, "publish_replace",
            before=lambda temp, final: final == self._out and passed("merge about to replace"),
            after=lambda temp, final: final == self._out and passed("merge has replaced"),
        )  # fmt: skip
        wrap(
            durable, "remove",
            before=lambda _: self._publishing and passed(f"{self._publishing} published, temp still there"),
            after=self._removed,
        )  # fmt: skip
        wrap(Path, "rmdir", after=lambda path: path == self._workspace.folder and passed("folder removed"))
        wrap(SegmentedWriter, "__enter__", after=lambda *_: self._note(entered=digests(self._out)))
        wrap(SegmentedWriter, "add", before=lambda _, key, views, **__: self._note(add=[key.hex(), views.tolist()]))
        wrap(SegmentedWriter, "seal", after=lambda *_: self._note(sealed=True))

    def _note(self, **entry: Any) -> None:
        os.write(self._journal_fd, json.dumps(entry).encode() + b"\n")

    def _is_due(self, step: str) -> bool:
        if self._kill is None or self._kill.step != step:
            return False
        self._passages += 1
        return self._passages == self._kill.passage

    def _passed(self, step: str) -> None:
        if self._is_due(step):
            self._die()

    def _die(self) -> None:
        assert self._kill is not None
        self._note(killed=self._kill.step)
        os.kill(os.getpid(), signal.SIGKILL)

    def _file_starts(self, new: NewFile, temp: Path, specs: Any) -> None:
        self._file = "merge" if temp.name.startswith(self._out.name + ".") else "segment"

    def _put_starts(self, new: NewFile, name: str, array: np.ndarray, first_entry: int = 0) -> None:
        if self._is_due(f"{self._file} half written"):
            new.put(name, array[: len(array) // 2], first_entry)
            self._die()

    def _publishes(self, file: str) -> None:
        self._publishing = file

    def _removed(self, path: Path) -> None:
        if self._publishing:
            self._passed(f"{self._publishing}'s temp removed")
        elif path.suffix == SEGMENT_SUFFIX:
            self._parts_removed += 1
            which = "last" if not self._workspace.segments() else "first" if self._parts_removed == 1 else "middle"
            self._passed(f"{which} part removed")
        elif path.name == PLAN_NAME:
            self._passed("plan removed")
        elif path.name == LOCK_NAME:
            self._passed("lock file removed")


def nothing(*_: Any, **__: Any) -> None:
    """Done where nothing is."""


def wrap(owner: Any, name: str, before: Callable[..., Any] = nothing, after: Callable[..., Any] = nothing) -> None:
    """Call `before` and `after` around a function of a module or class, with its arguments."""
    original = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        result = original(*args, **kwargs)
        after(*args, **kwargs)
        return result

    setattr(owner, name, staticmethod(wrapper) if inspect.ismethod(original) else wrapper)
