"""The folder `OUT.parts/` of one output while it is being made, held under a lock: segments, plan, unfinished files.

Never knows what is in a segment. A killed holder leaves nothing to clear up by hand: the kernel releases its lock, and
the next holder sweeps its temporary files. Run: `softlabel cache build DATA -o t.h5`
"""

import logging
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from cache import durable
from cache.errors import CacheError, CacheMismatch

log = logging.getLogger(__name__)

SEGMENT_SUFFIX = ".h5"
DAMAGED_SUFFIX = ".damaged"
PLAN_NAME = "plan.json"
LOCK_NAME = "lock"


class Workspace:
    """The one holder of an output's folder between `enter` and `leave`, also as a context; CacheBusy names another."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(out.name + ".parts")
        self.plan = self.folder / PLAN_NAME
        self._lock: durable.Lock | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock is not None

    def enter(self) -> None:
        """Take the lock and sweep what killed holders left unfinished."""
        if not self.out.parent.is_dir():
            raise CacheMismatch(f"{self.out.parent} is not a folder: make it first, or choose another -o")
        self._lock = durable.Lock.acquire(self.folder / LOCK_NAME)
        for temp in self.folder.glob("*" + durable.TEMP_SUFFIX):
            durable.remove(temp)

    def leave(self) -> None:
        """Release the lock; a folder without anything to resume from goes."""
        if self._lock is not None:
            if not self.has_work():
                with suppress(CacheError, OSError):
                    self._remove()
            self._release()

    def clear(self) -> None:
        """Remove everything that is ours, the lock and the folder last, and leave."""
        self._remove()
        self._release()

    def segments(self) -> list[Path]:
        """The sealed segments, by name."""
        return sorted(self.folder.glob("*" + SEGMENT_SUFFIX))

    def has_work(self) -> bool:
        """Whether an earlier run left rows here, sound or damaged."""
        return bool(self.segments() or list(self.folder.glob("*" + DAMAGED_SUFFIX)))

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

    def _remove(self) -> None:
        temps, damaged = (self.folder.glob("*" + suffix) for suffix in (durable.TEMP_SUFFIX, DAMAGED_SUFFIX))
        for path in [*self.segments(), *temps, *damaged, self.plan, self.folder / LOCK_NAME]:
            with suppress(FileNotFoundError):
                durable.remove(path)
        try:
            self.folder.rmdir()
        except OSError as error:
            log.info("%s stays: %s", self.folder, error.strerror)

    def _release(self) -> None:
        # After the folder is gone another holder may already own a new one of that name: touch nothing from here on.
        if self._lock is not None:
            self._lock.release()
        self._lock = None
