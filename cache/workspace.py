"""The folder `OUT.parts/` of one output while it is being made, held under a lock: segments, plan, unfinished files.

Never knows what is in a segment. A killed holder leaves nothing to clear up by hand: the kernel releases its lock, and
the next holder sweeps its temporary files. Run: `softlabel cache build DATA -o t.h5`
"""

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from cache import durable
from cache.errors import CacheError, CacheMismatch

log = logging.getLogger(__name__)

SEGMENT_SUFFIX = ".h5"
DAMAGED_SUFFIX = ".damaged"
REUSED_PREFIX = "reused-"
"""Of the segments whose rows were copied from another cache."""
PLAN_NAME = "plan.json"
LOCK_NAME = "lock"
MEMBER_PREFIX = "lock-of-rank-"
"""Of the locks of other processes that compute for the holder."""


class Workspace:
    """The one holder of an output's folder between `enter` and `leave`, also as a context; CacheBusy names another.

    A symbolic link stands for the file that it leads to: `out` is that file, and the folder is beside it. Member 0 is
    the holder. Members 1, 2, ... add segments while it holds the folder, each under a lock of its own, so that nobody
    else takes over after its death while they live; they must enter after it and leave before it.
    """

    def __init__(self, out: Path, member: int = 0) -> None:
        self.out = Path(os.path.realpath(out)) if os.path.islink(out) else out
        self.folder = self.out.parent / (self.out.name + ".parts")
        self.plan = self.folder / PLAN_NAME
        self._member, self._lock_name = member, f"{MEMBER_PREFIX}{member}" if member else LOCK_NAME
        self._lock: durable.Lock | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    def enter(self) -> None:
        """Take the lock; the holder also sweeps what killed holders and their members left."""
        if not self.out.parent.is_dir():
            raise CacheMismatch(f"{self.out.parent} is not a folder: make it first, or choose another -o")
        self._lock = durable.Lock.acquire(self.folder / self._lock_name)
        if self._member:
            return
        try:
            for of_member in sorted(self.folder.glob(f"{MEMBER_PREFIX}*")):
                durable.Lock.acquire(of_member).release()
                _remove([of_member])
            _remove(self._unfinished())
        except BaseException:
            self._release()
            raise

    def leave(self) -> None:
        """Release the lock; a folder without segments goes, or what is ours in it."""
        if self._lock is not None:
            if self._member:
                with suppress(CacheError):
                    _remove([self.folder / self._lock_name])
            elif not self.has_work():
                with suppress(CacheError, OSError):
                    self.clear([])
            self._release()

    def clear(self, merged: Iterable[Path]) -> None:
        """Remove these files and all unfinished ones, then the plan, the lock and, if it is empty now, the folder."""
        _remove([*merged, *self._unfinished(), self.plan])
        self._dissolve()

    def segments(self) -> list[Path]:
        """The sealed segments, by name."""
        return visible(self.folder, SEGMENT_SUFFIX)

    def damaged(self) -> list[Path]:
        """The segments that were set aside, by name."""
        return visible(self.folder, DAMAGED_SUFFIX)

    def has_work(self) -> bool:
        """Whether an earlier run left segments to go on from; damaged ones are none."""
        return bool(self.segments())

    def has_computed(self) -> bool:
        """Whether some of them hold rows that were computed here: the others must be computed in the same way."""
        return any(not segment.name.startswith(REUSED_PREFIX) for segment in self.segments())

    def set_aside(self, segment: Path) -> str:
        """Rename a damaged segment, out of the way and not lost; its new name."""
        aside = durable.temp_name(segment).with_suffix(DAMAGED_SUFFIX)
        segment.rename(aside)
        return aside.name

    def __enter__(self) -> "Workspace":
        self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def _unfinished(self) -> list[Path]:
        return list(self.folder.glob("*" + durable.TEMP_SUFFIX))

    def _dissolve(self) -> None:
        """Remove lock file and folder, then release the lock: in between, nobody can take a lock that is removed."""
        try:
            _remove([self.folder / LOCK_NAME])
        except CacheError:  # Windows removes no open file: ours only once it is closed, and nobody's that holds it then
            self._release()
            with suppress(CacheError):
                _remove([self.folder / LOCK_NAME])
        try:
            self.folder.rmdir()
        except OSError:  # NFS keeps a removed file under another name until it is closed
            self._release()
            self._remove_folder()
        self._release()

    def _remove_folder(self) -> None:
        # The lock may be another's by now, but no folder with a lock file in it can be removed.
        try:
            self.folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            names = sorted(path.name for path in self.folder.glob("*"))
            log.info("%s stays: %s (%s)", self.folder, error.strerror, ", ".join(names[:3]))

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = None


def visible(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder with this suffix, by name; without hidden ones, which a Mac lays beside each of its own."""
    return sorted(path for path in folder.glob("*" + suffix) if not path.name.startswith("."))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            durable.remove(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CacheError(f"cannot remove {path}: {error.strerror}") from error
