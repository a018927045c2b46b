"""The objects of a store as a table for people. Reads nothing. Run: `softlabel cache list URL`"""

from collections.abc import Sequence

from cache.errors import printable
from cache.store.address import MIN_ID_DIGITS
from cache.store.entry import Entry

_COLUMNS = ("teacher", "classes", "images", "views", "size", "date", "ID")
_LEFT = ("teacher", "date", "ID")
_MAX_TEACHER = 48


def to_text(entries: Sequence[Entry]) -> str:
    """A line for each object; ids are as short as they may be."""
    rows = [_COLUMNS, *(_row(entry, short_id(entry, entries)) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if name in _LEFT else text.rjust(width)
            for text, width, name in zip(row, widths, _COLUMNS, strict=True)
        ).rstrip()
        for row in rows
    )


def short_id(entry: Entry, entries: Sequence[Entry]) -> str:
    """The first digits of its content_id, which begin no other id in the store."""
    others = {
        other for one in entries for other in (one.content_id, one.cache_id, one.recipe_id)
        if one is not entry or other != one.content_id
    }  # fmt: skip
    for n_digits in range(MIN_ID_DIGITS, len(entry.content_id)):
        if not any(other.startswith(entry.content_id[:n_digits]) for other in others):
            return entry.content_id[:n_digits]
    return entry.content_id


def megabytes(n_bytes: int) -> str:
    """Of 1e6 bytes, or kilobytes of 1e3."""
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:,.1f} kB"


def _row(entry: Entry, shown_id: str) -> tuple[str, ...]:
    teacher = printable(entry.teacher) or "unknown"
    fewest, most = entry.views
    each = f"{most:,}" if fewest == most else f"{fewest:,}-{most:,}"
    return (
        teacher if len(teacher) <= _MAX_TEACHER else teacher[: _MAX_TEACHER - 3] + "...",
        " + ".join(f"{len(classes):,}" for classes in entry.tasks.values()),
        f"{entry.n_samples:,}",
        f"{entry.n_rows:,} ({each} each)",
        megabytes(entry.n_bytes),
        (entry.created or entry.pushed)[:10],
        shown_id,
    )
