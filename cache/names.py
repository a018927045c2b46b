"""Whether the names in a stranger's file are paths below a folder, and harmless to show.

Never changes one, and no command asks here for a file of one's own: names are for people, and disks hold odd ones.
Run: `softlabel cache pull STORE/ID -o t.h5`
"""

from collections.abc import Iterable

import numpy as np

from cache.errors import CacheDamaged, printable, shortened
from cache.manifest import Manifest

MAX_NAME_BYTES = 1024
MAX_PART_BYTES = 255
MAX_CLASS_CHARACTERS = 500
_AT_ONCE = 10_000


def refuse_names(names: np.ndarray) -> None:
    """CacheDamaged for the first stored name (bytes) that is no relative path with slashes, or not printable."""
    for start in range(0, len(names), _AT_ONCE):
        for name in names[start : start + _AT_ONCE].tolist():
            if reason := _reason(name):
                raise CacheDamaged(f"the image name {_shown(name)} {reason}")


def refuse_texts(manifest: Manifest) -> None:
    """CacheDamaged for task and class names that no terminal, table or folder could show."""
    for task, classes in manifest.tasks.items():
        for name in (task, *classes):
            if not name.isprintable() or len(name) > MAX_CLASS_CHARACTERS:
                raise CacheDamaged(f"the class or task name {_shown(name.encode())} is not printable, or too long")


def _reason(name: bytes) -> str:
    """What is wrong with it; empty if nothing is."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return "is no UTF-8"
    if not text.isprintable():
        return "has characters that are not printable"
    parts = text.split("/")
    if text.startswith("/") or "\\" in text or text[1:2] == ":":
        return "is no relative path with slashes"
    if not _are_plain(parts):
        return "leads out of its folder, or nowhere"
    if len(name) > MAX_NAME_BYTES or max(map(len, parts)) > MAX_PART_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    return ""


def _are_plain(parts: Iterable[str]) -> bool:
    return not any(part in ("", ".", "..") for part in parts)


def _shown(name: bytes) -> str:
    return printable(shortened(name.decode("utf-8", "backslashreplace"), 80))
