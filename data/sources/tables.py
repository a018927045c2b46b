"""Tables with a row an image: read them, and find the image that a row means. Knows no labels, groups or splits.

Hashes nothing and decodes nothing. `data.sources.rows` makes samples of a table, `data.groups` reads groups off one.
Run: softlabel cache build DATA --csv metadata.csv --label-column dx -o t.h5
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data.decode import IMAGE_SUFFIXES
from data.errors import BadSamples, DataNotFound, bullet_list, did_you_mean

IMAGE_COLUMNS = ("image_id", "image", "filename", "path", "name")
"""What the column of images is called where nobody says it, the first of them that there is."""
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Row:
    """One row, and the line of the file that it ends on."""

    line: int
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table with a header. Cells are stripped; every row has one for each column."""

    file: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def number(self, column: str) -> int:
        """The place of a column; BadSamples where there is none, or there are several, of that name."""
        has = f"it has {', '.join(self.columns) or 'none'}"
        if column not in self.columns:
            raise BadSamples(f"{self.file} has no column {column}; {has}{did_you_mean(column, self.columns)}")
        if (count := self.columns.count(column)) > 1:
            raise BadSamples(f"{self.file} has {count} columns {column}: keep one of them")
        return self.columns.index(column)

    def image_column(self, named: str | None) -> str:
        """The column of images: the one that is named, or the first that is called like one."""
        found = named or next((name for name in IMAGE_COLUMNS if name in self.columns), None)
        if found is None:
            raise BadSamples(
                f"{self.file} has no column {', '.join(IMAGE_COLUMNS)}; it has {', '.join(self.columns) or 'none'}: "
                "name the one of the images with --image-column"
            )
        return found


def read_table(file: Path) -> Table:
    """The table in a CSV file, whose cells stand between commas, semicolons or tabs.

    DataNotFound where it cannot be read; BadSamples lists rows with more or fewer cells than the header has columns.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise DataNotFound(f"cannot read {file} ({error.strerror}): --csv names a table with a row an image") from error
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadSamples(f"{file} is written in UTF-16: save it as UTF-8 CSV")
    opened = io.StringIO(text.decode("utf-8-sig", "surrogateescape"), newline="")
    reader = csv.reader(opened, delimiter=_delimiter(opened.readline()))
    opened.seek(0)
    try:
        columns = tuple(name.strip() for name in next(reader, []))
        rows = [Row(reader.line_num, tuple(cell.strip() for cell in cells)) for cells in reader if any(cells)]
    except csv.Error as error:
        raise BadSamples(f"{file} is no CSV table: line {reader.line_num}: {error}") from error
    if other := [row for row in rows if len(row.cells) < len(columns) or any(row.cells[len(columns) :])]:
        raise BadSamples(
            f"{len(other):,} rows of {file} have more or fewer cells than its header has columns ({len(columns)}); "
            "text with a comma in it needs double quotes, and a line that is cut off lacks its end:\n"
            + bullet_list(f"line {row.line}: {len(row.cells)} cells" for row in other)
        )
    return Table(file, columns, tuple(Row(row.line, row.cells[: len(columns)]) for row in rows))


def _delimiter(header: str) -> str:
    """The one that cuts the header into most columns, a comma where none does."""
    return max(_DELIMITERS, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def file_name(name: str) -> str:
    """The last part of a path with /."""
    return name.rpartition("/")[2]


def stem(name: str) -> str:
    """The file name of a path with /, without the suffix of an image; other dots belong to the name."""
    last = file_name(name)
    start, dot, suffix = last.rpartition(".")
    return start if start and f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else last


class ImageNames:
    """Images by their relative paths, found by what a table calls them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find(self, written: str) -> tuple[int, list[int]]:
        """(rank, numbers of the images that may be meant): rank 0 by relative path, 1 by file name, 2 by stem.

        Where several have the name, those count whose path ends like the one that is written.
        """
        written = written.replace("\\", "/").removeprefix("./")
        if (exact := self._by_path.get(written)) is not None:
            return 0, exact
        found, rank = self._by_file_name.get(file_name(written), []), 1
        if not found:
            found, rank = self._by_stem.get(stem(written), []), 2
        if len(found) > 1 and "/" in written:
            found = [at for at in found if _end_alike(self._names[at], written)] or found
        return rank, found

    @cached_property
    def _by_path(self) -> dict[str, list[int]]:
        return _numbers(self._names)

    @cached_property
    def _by_file_name(self) -> dict[str, list[int]]:
        return _numbers([file_name(name) for name in self._names])

    @cached_property
    def _by_stem(self) -> dict[str, list[int]]:
        return _numbers([stem(name) for name in self._names])


def _numbers(names: Collection[str]) -> dict[str, list[int]]:
    found = defaultdict[str, list[int]](list)
    for at, name in enumerate(names):
        found[name].append(at)
    return dict(found)


def _end_alike(name: str, written: str) -> bool:
    return f"/{name}".endswith(f"/{written}") or f"/{written}".endswith(f"/{name}")
