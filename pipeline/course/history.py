"""What this machine handed in to a server, and when: a small JSON file for each server. Holds no token.

A convenience: where its file is damaged or cannot be written, that is said, and the submission goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cache.durable import make_folder, write_atomic
from cache.errors import CacheError

log = logging.getLogger(__name__)

OUTCOMES = ("accepted", "refused", "unknown")
_KEPT = 100


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A file that was sent, or that was about to be."""

    time_utc: str
    """When sending began, ISO 8601."""
    sha256: str
    n_bytes: int
    outcome: str = "unknown"
    """One of OUTCOMES."""
    attempt: int | None = None
    """The server's number, where it told one."""

    def __post_init__(self) -> None:
        texts = isinstance(self.sha256, str) and self.outcome in OUTCOMES
        numbers = isinstance(self.n_bytes, int) and isinstance(self.attempt, int | None)
        if not texts or not numbers or datetime.fromisoformat(self.time_utc).tzinfo is None:
            raise ValueError("no submission")

    @property
    def time(self) -> datetime:
        """With its time zone."""
        return datetime.fromisoformat(self.time_utc)

    @property
    def may_count(self) -> bool:
        """Whether the server has it, as far as is known."""
        return self.outcome != "refused"


class History:
    """The submissions from this machine to one server, oldest first."""

    def __init__(self, folder: Path, server_url: str) -> None:
        self._url = server_url
        self.path = folder / f"{hashlib.sha256(server_url.encode()).hexdigest()[:16]}.json"
        self._current: Submission | None = None

    def submissions(self) -> list[Submission]:
        """All that are known; none, and a line about it, where the file is damaged."""
        try:
            found: dict[str, Any] = json.loads(self.path.read_bytes())
            return [Submission(**entry) for entry in found["submissions"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            log.warning("%s cannot be read: what was handed in before is forgotten", self.path)
            return []

    def begin(self, content: bytes) -> None:
        """Remember a submission as `unknown`, before its first byte is sent."""
        digest, now = hashlib.sha256(content).hexdigest(), datetime.now(timezone.utc)
        current = Submission(time_utc=now.isoformat(timespec="seconds"), sha256=digest, n_bytes=len(content))
        self._current = current
        self._write(lambda known: [*known, current][-_KEPT:])

    def settle(self, outcome: str, attempt: int | None = None) -> None:
        """What became of it."""
        settled = None if self._current is None else replace(self._current, outcome=outcome, attempt=attempt)
        assert settled is not None
        current, self._current = self._current, settled
        self._write(lambda known: [settled if one == current else one for one in known])

    def forget(self) -> None:
        """Nothing of it was sent."""
        current = self._current
        self._write(lambda known: [one for one in known if one != current])

    def _write(self, change: Callable[[list[Submission]], list[Submission]]) -> None:
        try:
            make_folder(self.path.parent)
            found = {"server": self._url, "submissions": [asdict(one) for one in change(self.submissions())]}
            write_atomic(self.path, json.dumps(found, indent=1).encode())
        except (OSError, CacheError) as error:
            log.warning("this submission is not remembered for the next time: %s", error)
