"""What the rows of a table say of images: labels, groups and splits, as `Found` files. Hashes and decodes nothing.

Run: softlabel cache build DATA --csv HAM10000_metadata.csv --image-column image_id --label-column dx
     --group-column lesion_id --image-dir HAM10000_images_part_1 --image-dir HAM10000_images_part_2 -o t.h5
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.errors import BadFile, BadSamples, DataNotFound, bullet_list
from data.files import images_below
from data.options import ScanOptions
from data.samples import FOLDER_TASK
from data.sources.folders import in_folders
from data.sources.found import SPLIT_NAMES, Found, Listing, split_of
from data.sources.tables import ImageNames, Row, Table, read_table

_BITS = {"0": False, "0.0": False, "False": False, "": False, "1": True, "1.0": True, "True": True}


@dataclass(frozen=True)
class _Said:
    """What one row says of its image."""

    line: int
    labels: Mapping[str, str]
    group: str
    split: str


def in_table(root: Path, file: Path, options: ScanOptions) -> Listing:
    """Every image that a row is about, with the row's labels, group and split.

    Where the table has no labels, but groups or splits, the labels are those of the folders of `root`. Rows whose
    image is nowhere are listed as missing. BadSamples lists everything else that is wrong, of a kind, at once.
    """
    table = read_table(file)
    image_column = table.image_column(options.image_column)
    _check_columns(table, (image_column, *options.columns))
    if not table.rows:
        raise BadSamples(f"{file} has a header and no rows: expected a row an image")
    one_hot = options.one_hot
    notices = []
    if not options.label_columns and not one_hot and (one_hot := _one_hot_columns(table, image_column, options)):
        notices.append(f"labels: the columns {', '.join(one_hot)} of {file}, one of which is 1 in a row")
    has_labels = bool(options.label_columns or one_hot)
    if not has_labels and options.group_column is None and options.split_column is None:
        raise BadSamples(
            f"{file}: which column has the labels? Name it with --label-column (or the columns of 0 and 1, one a "
            f"class, with --one-hot); it has {', '.join(table.columns)}"
        )
    rows = _Rows(table, image_column, replace(options, one_hot=one_hot))
    listing = _of_rows(root, rows, options) if has_labels else _of_folders(root, rows)
    return replace(listing, notices=[*notices, *listing.notices])


def _check_columns(table: Table, columns: Sequence[str]) -> None:
    problems = []
    for column in columns:
        try:
            table.number(column)
        except BadSamples as error:
            problems.append(str(error))
    if problems:
        raise BadSamples("\n".join(problems))


def _one_hot_columns(table: Table, image_column: str, options: ScanOptions) -> tuple[str, ...]:
    """All columns but those that have a role, if each row has 0 and 1 in them, and 1 at most once."""
    roles = (image_column, options.group_column, options.split_column)
    places = [at for at, column in enumerate(table.columns) if column not in roles]
    if len(places) < 2 or not table.rows:
        return ()
    for row in table.rows:
        bits = [_BITS.get(row.cells[at]) if row.cells[at] else None for at in places]
        if None in bits or sum(map(bool, bits)) > 1:
            return ()
    return tuple(table.columns[at] for at in places)


class _Rows:
    """The rows of a table, read as labels, groups and splits."""

    def __init__(self, table: Table, image_column: str, options: ScanOptions) -> None:
        self.table = table
        self._image = table.number(image_column)
        self._labels = [(column, table.number(column)) for column in options.label_columns]
        self._one_hot = [(column, table.number(column)) for column in options.one_hot]
        self._group = None if options.group_column is None else table.number(options.group_column)
        self._split = None if options.split_column is None else table.number(options.split_column)
        self._check_splits()
        self._check_one_hot()

    @property
    def has_splits(self) -> bool:
        """Whether a column of splits is named."""
        return self._split is not None

    def image(self, row: Row) -> str:
        """What the row calls its image."""
        return row.cells[self._image]

    def said(self, row: Row) -> _Said:
        """What the row says of it."""
        labels = {column: row.cells[at] for column, at in self._labels if row.cells[at]}
        if ones := [column for column, at in self._one_hot if _BITS[row.cells[at]]]:
            labels[FOLDER_TASK] = ones[0]
        group = "" if self._group is None else row.cells[self._group]
        split = "" if self._split is None else split_of(row.cells[self._split])
        return _Said(row.line, labels, group, split)

    def _check_splits(self) -> None:
        if self._split is None:
            return
        words = {row.cells[self._split] for row in self.table.rows} - {""}
        if unknown := sorted(word for word in words if not split_of(word)):
            raise BadSamples(
                f"{self.table.file} has the splits {', '.join(unknown[:10])}{', ...' if len(unknown) > 10 else ''}; "
                f"expected {', '.join(SPLIT_NAMES)}"
            )

    def _check_one_hot(self) -> None:
        problems = []
        for row in self.table.rows:
            ones = []
            for column, at in self._one_hot:
                if row.cells[at] not in _BITS:
                    problems.append(f"line {row.line}: {column} is {row.cells[at]}")
                elif _BITS[row.cells[at]]:
                    ones.append(column)
            if len(ones) > 1:
                problems.append(f"line {row.line}: {self.image(row)} is {' and '.join(ones)}")
        if problems:
            raise BadSamples(
                f"{self.table.file} has {len(problems):,} rows that are not one-hot (0 or 1 in each column, 1 in one "
                f"of them at most):\n{bullet_list(problems)}"
            )


def _of_rows(root: Path, rows: _Rows, options: ScanOptions) -> Listing:
    """The images that have a row, below the image folders or `root`."""
    folders = options.image_dirs or (root,)
    files = _files_below(root, folders)
    names = ImageNames([name for name, _ in files])
    said, bad, problems = defaultdict[int, list[_Said]](list), list[BadFile](), list[str]()
    for row in rows.table.rows:
        image = rows.image(row)
        _, meant = names.find(image) if image else (0, [])
        if len(meant) == 1:
            said[meant[0]].append(rows.said(row))
        elif meant:
            both = " and ".join(sorted(files[at][0] for at in meant)[:3])
            problems.append(f"line {row.line}: {image} may be {both}: write relative paths in the table")
        else:
            bad.append(BadFile(f"{image or 'no image'} (line {row.line})", "no such image", is_missing=True))
    found = []
    for at in sorted(said):
        name, file = files[at]
        one, contradictions = _merged(name, said[at])
        if isinstance(file, BadFile):
            bad.append(file)
        else:
            found.append(Found(file, name, one.split, one.labels, one.group))
        problems += contradictions
    _refuse(rows.table.file, problems)
    looked = ", ".join(map(str, folders))
    if not found:
        raise DataNotFound(
            f"none of the {len(rows.table.rows):,} images of {rows.table.file} is among the {len(files):,} in {looked}"
            f"; --image-dir names other folders, --image-column another column:\n"
            + bullet_list((file.path for file in bad), limit=3)
        )
    others = [name for at, (name, _) in enumerate(files) if at not in said]
    unused = f"{len(others):,} images in {looked} have no row in {rows.table.file} and are not used (first: "
    found, notices = _with_splits(found, rows)
    return Listing(found, bad, [*(f"{unused}{name})" for name in others[:1]), *notices])


def _files_below(root: Path, folders: Sequence[Path]) -> list[tuple[str, str | BadFile]]:
    """(name for people, path or what is wrong with it) of each image, once.

    A folder outside of `root` is the first part of its names.
    """
    found: dict[str, tuple[str, str | BadFile]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataNotFound(f"no such folder: {folder}; expected the images of the table in it")
        inside = folder.relative_to(root if folder.is_relative_to(root) else folder.parent).as_posix()
        above = "" if inside == "." else f"{inside}/"
        n_above = len(os.path.join(folder, ""))
        there = images_below(folder)
        files: dict[str, str | BadFile] = {path: path for path in there.paths}
        for path, file in (files | {bad.path: bad for bad in there.bad}).items():
            found.setdefault(path, (above + path[n_above:].replace(os.sep, "/"), file))
    return list(found.values())


def _merged(name: str, said: Sequence[_Said]) -> tuple[_Said, list[str]]:
    """What all rows of an image say together, and where they contradict each other."""
    first, *others = said
    if not others:
        return first, []
    values = defaultdict[tuple[str, str], set[str]](set)
    for one in said:
        labels = ((("label", task), label) for task, label in one.labels.items())
        for what, value in (*labels, (("group", ""), one.group), (("split", ""), one.split)):
            values[what] |= {value} - {""}
    lines = ", ".join(str(one.line) for one in said)
    problems = [
        f"{name} (lines {lines}): {task or kind} is {' and '.join(sorted(words))}"
        for (kind, task), words in values.items() if len(words) > 1
    ]  # fmt: skip
    value_of = {what: min(words, default="") for what, words in values.items()}
    labels_of = {task: value for (kind, task), value in value_of.items() if kind == "label"}
    return _Said(first.line, labels_of, value_of["group", ""], value_of["split", ""]), problems


def _with_splits(found: list[Found], rows: _Rows) -> tuple[list[Found], list[str]]:
    """Splits that the table does not say: those of the folders, if all images lie in folders that are called so."""
    if rows.has_splits:
        n_without = sum(not one.split for one in found)
        joined = [one if one.split else replace(one, split="train") for one in found]
        return joined, [f"{n_without:,} images have no split in {rows.table.file}: they join train"] * bool(n_without)
    folders = [one.name.split("/")[:-1] for one in found]
    for depth in range(min(map(len, folders))):
        names = {folder[depth] for folder in folders}
        if all(map(split_of, names)) and len(set(map(split_of, names))) > 1:
            there = [replace(one, split=split_of(f[depth])) for one, f in zip(found, folders, strict=True)]
            return there, [f"splits: the folders {', '.join(sorted(names))}"]
    return found, []


def _of_folders(root: Path, rows: _Rows) -> Listing:
    """The images of the folders, with the groups and splits of the table."""
    listing = in_folders(root)
    names = ImageNames([one.name for one in listing.found])
    said, problems, n_without_image = defaultdict[int, list[_Said]](list), list[str](), 0
    for row in rows.table.rows:
        _, meant = names.find(rows.image(row))
        n_without_image += not meant
        if len(meant) == 1:
            said[meant[0]].append(rows.said(row))
        elif meant:
            problems.append(f"line {row.line}: {rows.image(row)} fits {len(meant)} images: write relative paths")
    found = []
    for at, one in enumerate(listing.found):
        if at not in said:
            problems.append(f"{one.name}: no row")
            continue
        row_says, contradictions = _merged(one.name, said[at])
        problems += contradictions
        if one.split and row_says.split and one.split != row_says.split:
            problems.append(f"{one.name}: lies in {one.split}, its row says {row_says.split}")
        found.append(replace(one, group=row_says.group, split=row_says.split or one.split))
    _refuse(rows.table.file, problems)
    notices = [f"{n_without_image:,} rows of {rows.table.file} have no image here"] * bool(n_without_image)
    found, more = _with_splits(found, rows) if rows.has_splits else (found, [])
    return Listing(found, listing.bad, [*listing.notices, *notices, *more])


def _refuse(file: Path, problems: Sequence[str]) -> None:
    if problems:
        raise BadSamples(
            f"{file} and the images do not fit together in {len(problems):,} places (a row finds its image by relative "
            f"path, file name or file name without suffix):\n{bullet_list(problems)}"
        )
