"""The leaderboard: an HTML page with a table, as text. Sends nothing, and trusts nothing that stands in the page.

Not by html.parser, which takes a minute for 60 kB of `<a <a <a`: here every character is looked at once.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cache.errors import printable
from pipeline.course.protocol import BadAnswer

_TAG = re.compile(r"<([^<>]*)>")
_PARTS = ("tr", "td", "th", "thead", "tbody", "tfoot")
_UNSEEN = ("script", "style", "template", "noscript")
_MAX_CELL = 60
"""Characters of a cell that are shown."""
_MAX_COLUMNS = 50
_Row = tuple[bool, list[str]]
"""(Whether all its cells are headings, their texts.)"""


@dataclass(frozen=True)
class Leaderboard:
    """A table of texts as the page has them: rank, team, F1 and size in MB, and whatever else there is."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_text(self) -> str:
        """Aligned, for a terminal."""
        return aligned([self.columns, *self.rows])

    def to_dicts(self) -> list[dict[str, str]]:
        """An object for each row, by column."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def leaderboard_of(page: str) -> Leaderboard:
    """The table of a page, the first that has two columns and a row below the first; BadAnswer where there is none."""
    for table in _tables(page):
        width = min(max((len(cells) for _, cells in table), default=0), _MAX_COLUMNS)
        has_header = bool(table) and table[0][0]
        if width < 2 or len(table) < (2 if has_header else 1):
            continue
        header = table[0][1] if has_header else []
        rows = [cells for _, cells in (table[1:] if has_header else table) if any(cells)]
        return Leaderboard(_names(_padded(header, width)), tuple(tuple(_padded(cells, width)) for cells in rows))
    raise BadAnswer("answered with a page that has no table of teams")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Texts in columns, numbers to the right; what is no printable character is shown, not obeyed."""
    shown = [[_cut(printable(cell)) for cell in row] for row in rows]
    columns = list(zip(*shown, strict=True))
    widths = [max(map(_width, column)) for column in columns]
    is_right = [len(column) > 1 and all(map(_is_number, column[1:])) for column in columns]
    lines = []
    for row in shown:
        cells = []
        for cell, width, right in zip(row, widths, is_right, strict=True):
            space = " " * (width - _width(cell))
            cells.append(space + cell if right else cell + space)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class _Reader:
    """The rows of the table that is being read."""

    def __init__(self) -> None:
        self.rows: list[_Row] = []
        self.cell: list[str] | None = None
        """The texts of the open cell."""
        self._is_heading = False

    def end_cell(self) -> None:
        """Into the row, which has headings alone as long as all its cells are some."""
        if self.cell is not None:
            was_heading, cells = self.rows.pop() if self.rows else (True, [])
            cells.append(" ".join(html.unescape("".join(self.cell)).split()))
            self.rows.append((was_heading and self._is_heading, cells))
        self.cell = None

    def take(self, name: str, is_end: bool) -> None:
        """A tag inside a table. End tags may be left out, as in HTML."""
        if name in _PARTS:
            self.end_cell()
            if name == "tr" and not is_end:
                self.rows.append((True, []))
            elif name in ("td", "th") and not is_end:
                self.cell, self._is_heading = [], name == "th"
        elif self.cell is not None:
            self.cell.append(" ")

    def taken(self) -> list[_Row]:
        """The rows so far; the next table begins with none."""
        self.end_cell()
        rows, self.rows = self.rows, []
        return rows


def _tables(page: str) -> Iterator[list[_Row]]:
    """Each table's rows."""
    reader, depth, unseen = _Reader(), 0, False
    for tag, text in _pieces(_without_comments(page)):
        is_end = tag.startswith("/")
        name = (re.split(r"[\s/]", tag.lstrip("/"), maxsplit=1)[0]).lower()
        if name in _UNSEEN:
            unseen = not is_end
        elif name == "table":
            depth = max(0, depth - 1) if is_end else depth + 1
            yield reader.taken()
        elif depth and name:
            reader.take(name, is_end)
        if reader.cell is not None and not unseen:
            reader.cell.append(text)
    yield reader.taken()


def _pieces(page: str) -> Iterator[tuple[str, str]]:
    """(what stands in a tag, the text after it), in order."""
    end, tag = 0, ""
    for found in _TAG.finditer(page):
        yield tag, page[end : found.start()]
        tag, end = found[1], found.end()
    yield tag, page[end:]


def _without_comments(page: str) -> str:
    kept, at = [], 0
    while (start := page.find("<!--", at)) >= 0:
        kept.append(page[at:start])
        end = page.find("-->", start + 4)
        at = end + 3 if end >= 0 else len(page)
    return "".join([*kept, page[at:]])


def _names(header: Sequence[str]) -> tuple[str, ...]:
    """A name for each column, each another."""
    names: list[str] = []
    for number, cell in enumerate(header, 1):
        name = cell or f"column {number}"
        names.append(f"{name} ({number})" if name in names else name)
    return tuple(names)


def _padded(cells: Sequence[str], width: int) -> list[str]:
    return [*cells, *[""] * width][:width]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 3]}..."


def _width(text: str) -> int:
    """Columns of a terminal: Chinese signs and most pictures take two, accents of their own none."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[\d.,]*( ?(MB|%))?", text) is not None
