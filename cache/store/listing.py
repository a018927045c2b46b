"""The objects of a store as a table for people. Reads nothing. Run: `softlabel cache list URL`"""

from collections.abc import Iterable, Sequence

from cache.errors import printable
from cache.store.address import MIN_ID_DIGITS
from cache.store.entry import Entry

_COLUMNS = ("teacher", "kind", "classes", "images", "views", "size", "date", "recipe", "ID")
_LEFT = ("teacher", "kind", "date", "recipe", "ID")
_MAX_TEACHER = 48
_USUAL_HEAD = "zero_shot"


def to_text(entries: Sequence[Entry]) -> str:
    """A line for each object, in their order; ids are as short as they may be."""
    rows = [_COLUMNS, *(_row(entry, short_recipe(entry, entries), short_id(entry, entries)) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if name in _LEFT else text.rjust(width)
            for text, width, name in zip(row, widths, _COLUMNS, strict=True)
        ).rstrip()
        for row in rows
    )


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """The recipe with the latest object first, in it the latest object first; the same order for the same objects."""
    found = sorted(entries, key=lambda one: one.content_id)
    latest: dict[str, str] = {}
    for one in found:
        latest[one.recipe_id] = max(latest.get(one.recipe_id, ""), one.pushed)
    found.sort(key=lambda one: one.pushed, reverse=True)
    return sorted(found, key=lambda one: (latest[one.recipe_id], one.recipe_id), reverse=True)


def kind(entry: Entry) -> str:
    """What it is besides a cache of logits."""
    seed = f"seed {entry.seed}" if entry.seed not in ("", "0") else ""
    embeddings = "embeddings" if "embedding" in entry.features else "no embeddings"
    head = "" if entry.head == _USUAL_HEAD else entry.head
    return ", ".join(filter(None, (head, embeddings, "names" if entry.has_names else "", seed)))


def short_id(entry: Entry, entries: Sequence[Entry]) -> str:
    """The first digits of its content_id, which begin no other id in the store."""
    others = {
        other for one in entries for other in (one.content_id, one.cache_id, one.recipe_id)
        if one is not entry or other != one.content_id
    }  # fmt: skip
    return _shortest(entry.content_id, others)


def short_recipe(entry: Entry, entries: Sequence[Entry]) -> str:
    """The first digits of its recipe_id, which begin no other recipe's in the store."""
    return _shortest(entry.recipe_id, {one.recipe_id for one in entries} - {entry.recipe_id})


def _shortest(identifier: str, others: Iterable[str]) -> str:
    for n_digits in range(MIN_ID_DIGITS, len(identifier)):
        if not any(other.startswith(identifier[:n_digits]) for other in others):
            return identifier[:n_digits]
    return identifier


def megabytes(n_bytes: int) -> str:
    """Of 1e6 bytes, or kilobytes of 1e3."""
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:,.1f} kB"


def _row(entry: Entry, recipe: str, shown_id: str) -> tuple[str, ...]:
    teacher = printable(entry.teacher) or "unknown"
    fewest, most = entry.views
    each = f"{most:,}" if fewest == most else f"{fewest:,}-{most:,}"
    return (
        teacher if len(teacher) <= _MAX_TEACHER else teacher[: _MAX_TEACHER - 3] + "...",
        kind(entry),
        " + ".join(f"{len(classes):,}" for classes in entry.tasks.values()),
        f"{entry.n_samples:,}",
        f"{entry.n_rows:,} ({each} each)",
        megabytes(entry.n_bytes),
        (entry.created or entry.pushed)[:10],
        recipe,
        shown_id,
    )
