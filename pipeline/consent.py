"""What people said yes to: the places that caches may be pushed to, in a small file of the user's own.

Never asks and never decides. Used by `softlabel cache push`.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone
from pathlib import Path

from cache import CacheError, durable
from cache.errors import ManifestError
from cache.manifest import parse_strict

log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20


class Consent:
    """Remembers by place; a place has no password in it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def is_given(self, place: str) -> bool:
        """Whether somebody said yes to this very place before."""
        return place in self._read()

    def remember(self, place: str) -> None:
        """From now on it is given. Where the file cannot be written it is asked for again, which harms nobody."""
        given = {**self._read(), place: datetime.now(timezone.utc).isoformat(timespec="seconds")}
        try:
            durable.make_folder(self.file.parent)
            durable.write_atomic(self.file, json.dumps(given, indent=1, sort_keys=True).encode())
        except (CacheError, OSError) as error:
            log.warning("the yes cannot be remembered and will be asked for again: %s", error)

    def _read(self) -> dict[str, str]:
        try:
            with self.file.open("rb") as file:
                found = parse_strict(file.read(_MAX_BYTES + 1))
        except (OSError, ManifestError):
            return {}
        return (
            {place: date for place, date in found.items() if isinstance(date, str)} if isinstance(found, dict) else {}
        )
