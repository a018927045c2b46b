"""Read a table of a teacher's scores, CSV or NPZ, and make raw logits of it. All that is wrong is listed at once.

Never looks at an image: names are text here, and `pipeline.scores.matching` says which images they mean.
Run: softlabel cache import scores.csv DATA -o t.h5 --as probabilities
R rows of the table, C classes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache import Manifest
from cache.layout import logits_dtype
from data.errors import bullet_list
from pipeline.errors import PipelineError
from pipeline.scores.arrays import read_arrays

log = logging.getLogger(__name__)

KINDS = ("logits", "probabilities")
IMAGE_COLUMNS = ("image", "image_id", "filename", "path", "name")
VIEW_COLUMN = "view"
MAX_BYTES = 2**31
"""Of a table, once unpacked: 5 million rows of 100 float32 scores."""
PROBABILITY_FLOOR = 1e-7
"""Smaller probabilities count as this one, whose logarithm is -16.1: about the step of float32 below 1, so that the sum
of a float32 row cannot tell it from 0."""
_MAX_LISTED = 1_000
"""Wrong cells of one column that are kept for the message: a file of text in the place of a table stays cheap."""
_SUM_TOLERANCE = 1e-3
"""How far the sum of a row may be from 1: ten classes rounded to four digits."""


IMPORTED = "imported"
"""The kind of teacher, in an identity, whose answers came as a table."""


class ScoresError(PipelineError, ValueError):
    """A table of scores that cannot be read, contradicts itself, or does not fit the images."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoreTable:
    """What a file says: the scores of one image, or of one view of it, in each row; in the file's order."""

    path: Path
    images: Sequence[str]
    """The name of each row's image, as the file has it."""
    views_R: NDArray[np.int64]
    """View numbers; all 0, the clean image, where the file has none."""
    classes: tuple[str, ...]
    """In `sorted()` order."""
    scores_RC: NDArray[np.float64]
    places: Sequence[str]
    """Where each row stands, for people: 'line 7'."""

    @property
    def has_views(self) -> bool:
        """Whether views were scored, not only clean images."""
        return bool(self.views_R.any())

    def sha256(self) -> str:
        """Hex digest of the content: independent of the file's kind and of the order of its rows and columns."""
        order = sorted(range(len(self.images)), key=lambda row: (self.images[row], self.views_R[row]))
        digest = hashlib.sha256(b"softlabel scores 1\0" + json.dumps(self.classes).encode())
        for row in order:
            digest.update(json.dumps([self.images[row], int(self.views_R[row])]).encode())
        digest.update(self.scores_RC[order].astype("<f4").tobytes())
        return digest.hexdigest()

    def of_columns(self, columns: Sequence[int]) -> ScoreTable:
        """Some of the columns alone."""
        classes = tuple(self.classes[column] for column in columns)
        return replace(self, classes=classes, scores_RC=self.scores_RC[:, list(columns)])

    def logits(self, kind: str) -> tuple[NDArray[np.float32], int]:
        """(raw logits, float32 [R, C]; how many probabilities were raised to PROBABILITY_FLOOR).

        `kind` is one of KINDS. Of probabilities it is log p. ScoresError where the numbers are of another kind.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            sums_R, smallest_R = self.scores_RC.sum(axis=1), self.scores_RC.min(axis=1)
        wrong_R = (smallest_R < 0) | ~(np.abs(sums_R - 1) <= _SUM_TOLERANCE)
        if kind == "probabilities":
            if wrong_R.any():
                self._refuse_probabilities(wrong_R, sums_R, smallest_R)
            low = self.scores_RC < PROBABILITY_FLOOR
            return np.log(np.where(low, PROBABILITY_FLOOR, self.scores_RC)).astype(np.float32), int(low.sum())
        if not wrong_R.any():
            raise ScoresError(
                f"these look like probabilities: each of the {len(wrong_R):,} rows of {self.path} sums to 1, and none "
                "has a negative score. Pass --as probabilities"
            )
        largest = float(np.finfo(logits_dtype(len(self.classes))).max)
        if (large_R := np.abs(self.scores_RC).max(axis=1) > largest).any():
            listed = bullet_list(f"{self.places[row]}: {self.images[row]}" for row in np.flatnonzero(large_R).tolist())
            raise ScoresError(f"{self.path}: logits beyond {largest:.3g}, which a cache cannot hold:\n{listed}")
        return self.scores_RC.astype(np.float32), 0

    def _refuse_probabilities(
        self, wrong_R: NDArray[np.bool_], sums_R: NDArray[np.float64], smallest_R: NDArray[np.float64]
    ) -> None:
        listed = bullet_list(
            f"{self.places[row]}: {self.images[row]} "
            + (f"has {smallest_R[row]:.4g}" if smallest_R[row] < 0 else f"sums to {sums_R[row]:.4g}")
            for row in np.flatnonzero(wrong_R).tolist()
        )
        raise ScoresError(
            f"{int(wrong_R.sum()):,} of {len(wrong_R):,} rows of {self.path} are no probabilities, expected numbers in "
            f"[0, 1] that sum to 1 within {_SUM_TOLERANCE:g}. Are they raw scores or logarithms? --as logits\n{listed}"
        )


def imported_from(manifest: Manifest) -> str | None:
    """The name of the file that a cache was imported from; None for any other cache."""
    teacher, source = manifest.identity.get("teacher"), manifest.provenance.get("scores")
    is_imported = isinstance(teacher, dict) and teacher.get("kind") == IMPORTED
    return (source if isinstance(source, str) else "SCORES") if is_imported else None


def read_scores(path: str | Path) -> ScoreTable:
    """The table in a CSV or NPZ file; ScoresError lists everything in it that is not as it should be."""
    path = Path(path)
    try:
        n_bytes = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise ScoresError(f"cannot read the scores in {path}: {error.strerror}") from error
    if path.suffix.lower() in (".xls", ".xlsx", ".ods", ".numbers"):
        raise ScoresError(f"{path} is a spreadsheet: save it as CSV (UTF-8), then import that")
    if n_bytes > MAX_BYTES:
        raise ScoresError(f"{path} has {n_bytes:,} bytes, expected at most {MAX_BYTES:,}: import it in pieces")
    table = _read_npz(path) if start[:2] == b"PK" or path.suffix.lower() == ".npz" else _read_csv(path)
    _check(table)
    order = sorted(range(len(table.classes)), key=lambda column: table.classes[column])
    return ScoreTable(
        path=path, images=table.images, views_R=table.views_R, classes=tuple(table.classes[at] for at in order),
        scores_RC=table.scores_RC[:, order], places=table.places,
    )  # fmt: skip


def _read_npz(path: Path) -> ScoreTable:
    try:
        arrays = read_arrays(path, MAX_BYTES)
    except ValueError as error:
        raise ScoresError(f"{path}: {error}") from error
    scores_RC = arrays["scores"].astype(np.float64)
    classes = tuple(str(name).strip() for name in arrays["classes"])
    problems = [
        f"scores[{row}]: {classes[column]} is {scores_RC[row, column]}, expected a number"
        for row, column in np.argwhere(~np.isfinite(scores_RC))
    ]
    if problems:
        raise _wrong(path, problems)
    return ScoreTable(
        path=path,
        images=[str(name).strip() for name in arrays["image"]],
        views_R=arrays["view"].astype(np.int64) if "view" in arrays else np.zeros(len(scores_RC), np.int64),
        classes=classes,
        scores_RC=scores_RC,
        places=[f"scores[{row}]" for row in range(len(scores_RC))],
    )


def _read_csv(path: Path) -> ScoreTable:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            first_line = stream.readline(65_536)
            stream.seek(0)
            # Spreadsheets write ; where the comma is the decimal sign, and tabs as "text".
            delimiter = max(",;\t", key=first_line.count)
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            rows = _CsvRows(path, [cell.strip() for cell in next(reader, [])])
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    rows.add(reader.line_num, cells)
    except UnicodeDecodeError as error:
        raise ScoresError(f"{path} is neither an NPZ file nor text in UTF-8: save it as CSV (UTF-8)") from error
    except csv.Error as error:
        raise ScoresError(f"{path} is not CSV: line {reader.line_num}: {error}") from error
    return rows.table()


class _CsvRows:
    """The rows of a CSV file as they are read, and what is wrong with them."""

    def __init__(self, path: Path, header: list[str]) -> None:
        self._path, self._header = path, header
        self._image_at = _image_column(path, header)
        lowered = [name.lower() for name in header]
        self._view_at = lowered.index(VIEW_COLUMN) if VIEW_COLUMN in lowered else None
        self._class_at = [at for at in range(len(header)) if at not in (self._image_at, self._view_at)]
        self._images: list[str] = []
        self._lines: list[int] = []
        self._views, self._scores = array("q"), array("d")
        self._problems: list[tuple[int, str]] = []
        self._not_numbers: dict[int, list[tuple[int, str]]] = {at: [] for at in self._class_at}
        self._n_texts = dict.fromkeys(self._class_at, 0)

    def add(self, line: int, cells: list[str]) -> None:
        """One row; a wrong one is noted."""
        if len(cells) != len(self._header):
            self._problems.append((line, f"{len(cells)} cells, expected {len(self._header)}"))
            return
        self._lines.append(line)
        self._images.append(cells[self._image_at].strip())
        view = "0" if self._view_at is None else cells[self._view_at].strip()
        if not (view.isascii() and view.isdigit() and len(view) <= 5):
            self._problems.append((line, f"view is '{view}', expected a whole number, 0 for the clean image"))
            view = "0"
        self._views.append(int(view))
        for at in self._class_at:
            value = _number(cells[at])
            self._n_texts[at] += value is None
            if (value is None or not math.isfinite(value)) and len(self._not_numbers[at]) < _MAX_LISTED:
                self._not_numbers[at].append((line, cells[at].strip()))
            self._scores.append(math.nan if value is None else value)

    def table(self) -> ScoreTable:
        """All rows; ScoresError lists all problems. Columns without one number, such as labels, are left out."""
        texts = [at for at in self._class_at if self._n_texts[at] == len(self._lines) > 0]
        numbers = [at for at in self._class_at if at not in texts]
        if names := [self._header[at] for at in texts if self._header[at]]:
            log.info("these columns of %s hold no number and are left out: %s", self._path, ", ".join(names))
        self._problems += [
            (line, f"{self._header[at]} is {repr(cell) if cell else 'empty'}, expected a number")
            for at in numbers for line, cell in self._not_numbers[at]
        ]  # fmt: skip
        if self._problems:
            raise _wrong(self._path, [f"line {line}: {problem}" for line, problem in sorted(self._problems)])
        scores_RC = np.array(self._scores, np.float64).reshape(len(self._lines), len(self._class_at))
        return ScoreTable(
            path=self._path,
            images=self._images,
            views_R=np.array(self._views, np.int64),
            classes=tuple(self._header[at] for at in numbers),
            scores_RC=scores_RC[:, [self._class_at.index(at) for at in numbers]],
            places=[f"line {line}" for line in self._lines],
        )


def _image_column(path: Path, header: list[str]) -> int:
    named = [at for at, name in enumerate(header) if name.lower() in IMAGE_COLUMNS]
    if len(named) > 1:
        found = ", ".join(header[at] for at in named)
        raise ScoresError(f"{path}: each of the columns {found} may name the image: keep one of them")
    return named[0] if named else 0


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_0 as ten
    except ValueError:
        return None


def _check(table: ScoreTable) -> None:
    """What is asked of either kind of file."""
    names = table.classes
    problems = []
    if len(names) < 2:
        problems.append(f"{len(names)} columns of scores, expected one for each class: {', '.join(names) or 'none'}")
    if "" in names:
        problems.append("a column of scores has no name (a row number, written by pandas? write it with index=False)")
    problems += [f"two columns are named '{name}'" for name in sorted(set(names)) if name and names.count(name) > 1]
    if not table.images:
        problems.append("no row of scores")
    first: dict[tuple[str, int], str] = {}
    for place, image, view in zip(table.places, table.images, table.views_R.tolist(), strict=True):
        if not image:
            problems.append(f"{place}: no image is named")
        elif not 0 <= view <= 65_535:
            problems.append(f"{place}: view {view}, expected 0..65535")
        elif (earlier := first.setdefault((image, view), place)) != place:
            problems.append(f"{place}: {image}{f', view {view},' if view else ''} stands in {earlier} already")
    if problems:
        raise _wrong(table.path, problems)


def _wrong(path: Path, problems: Sequence[str]) -> ScoresError:
    expected = "expected a column that names the image and a number for each class"
    return ScoresError(f"{path} cannot be imported ({expected}):\n{bullet_list(problems)}")
