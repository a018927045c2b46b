"""How a data set is to be read. Imports nothing heavy, so that a command line can make it at once.

Reads no file: `data.sources.resolve` finds out what DATA is, `data.scan` reads it.
Run: softlabel cache build DATA --csv metadata.csv --label-column dx --group-column lesion_id -o t.h5
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from data.errors import BadOption

MANY = ("label_columns", "one_hot", "image_dirs", "only")
"""The settings that hold several values."""
_FLAGS = {"label_columns": "--label-column", "image_dirs": "--image-dir"}
"""Setting -> flag, where the names differ."""
_NOT_WORDS = frozenset({"memo", "downloads", "remember_split", "collect_bad_files"})
"""What the command line sets by itself."""


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """How DATA becomes samples. What is not given may stand in a data set file (`data.sources.resolve`)."""

    csv: Path | None = None
    """Table with a row an image; a relative path is looked for in the working folder, then in DATA."""
    image_column: str | None = None
    """Its column of images; None: the first of `data.sources.tables.IMAGE_COLUMNS` there is."""
    label_columns: tuple[str, ...] = ()
    """Its columns of class names; each is a task of its own."""
    one_hot: tuple[str, ...] = ()
    """Its columns of 0 and 1, each a class of the one task `class`."""
    group_column: str | None = None
    """Its column of lesions, patients: a group is never torn between two splits."""
    split_column: str | None = None
    """Its column of splits."""
    image_dirs: tuple[Path, ...] = ()
    """Where the table's images lie, with the folders in them; none: in DATA. Looked for as `csv` is."""
    only: tuple[str, ...] = ()
    """Keep images of these classes: `CLASS`, or `TASK=CLASS` where there are several tasks."""
    max_per_class: int | None = None
    """Keep so many images of each class in each split: those of the smallest keys, so that 10 are among 20."""
    split_seed: int | None = None
    """Of a split that is made here; None is 0. Each seed has a file of its own."""
    folds: int | None = None
    """Cut a data set without splits into so many parts instead; without `fold` all of them are train."""
    fold: int | None = None
    """Which part is test, from 1; the others are train."""
    split_file: Path | None = None
    """Where the split that is made here stands; None: beside the images or the table. Made once, then read."""
    allow_duplicates: bool = False
    """Accept the same bytes under two labels, in two groups or in two splits."""
    allow_group_leaks: bool = False
    """Accept a group in two splits."""
    remember_split: bool = True
    """Save a split that is made now; False for commands that only ask, which make the same one in memory."""
    skip_bad_images: bool = False
    """Leave out files that are missing, empty or no whole image, with a notice, instead of stopping."""
    collect_bad_files: bool = False
    """Hand over those without bytes as `SampleSet.bad`, for callers that tell all bad files at once."""
    memo: Path | None = None
    """Where content keys are remembered (`data.hashes`); None hashes every file anew."""
    downloads: Path | None = None
    """The folder that `torchvision:` and `hf:` data sets are written into."""

    def __post_init__(self) -> None:
        for name, low in (("max_per_class", 1), ("split_seed", 0), ("folds", 2), ("fold", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise BadOption(f"{flag_of(name)} must be at least {low}, got {value}")
        if self.folds is not None and self.folds > 100:
            raise BadOption(f"--folds must be at most 100, got {self.folds}")
        if self.fold is not None and self.folds is None:
            raise BadOption(f"--fold {self.fold} is one of several: say of how many with --folds")
        if self.fold is not None and self.folds is not None and self.fold > self.folds:
            raise BadOption(f"--fold must be in 1..{self.folds}, got {self.fold}")
        if self.folds is not None and self.split_column is not None:
            raise BadOption("--split-column and --folds both split the data: choose one of them")
        if self.label_columns and self.one_hot:
            raise BadOption("--label-column and --one-hot both name the labels: choose one of them")
        if len(self.one_hot) == 1:
            raise BadOption(f"--one-hot names a column for each class, got one alone: {self.one_hot[0]}")
        for name in MANY:
            if any(not str(value).strip() for value in getattr(self, name)):
                raise BadOption(f"{flag_of(name)} has an empty name in it")
        self._check_columns()

    def _check_columns(self) -> None:
        """One column has one role; but labels may be groups (a patient has a diagnosis)."""
        roles = [*self.label_columns, *self.one_hot]
        roles += [column for column in (self.image_column, self.split_column) if column is not None]
        if twice := [column for column, count in Counter(roles).items() if count > 1]:
            raise BadOption(f"the column {twice[0]} is named twice")

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is named, but that of the images."""
        others = (self.group_column, self.split_column)
        return (*self.label_columns, *self.one_hot, *(column for column in others if column is not None))

    def words(self) -> tuple[str, ...]:
        """The words of the command line that give these options again; none for defaults."""
        found: list[str] = []
        for field in fields(self):
            value, flag = getattr(self, field.name), flag_of(field.name)
            if field.name in _NOT_WORDS or value == field.default:
                continue
            if value is True:
                found.append(flag)
            elif field.name == "image_dirs":
                found += [word for folder in value for word in (flag, str(folder))]
            else:
                found += [flag, comma_list(value) if isinstance(value, tuple) else str(value)]
        return tuple(found)


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def comma_list(names: Sequence[str]) -> str:
    """Names with commas between them; one with a comma in it stands in CSV's double quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


def split_commas(text: str) -> tuple[str, ...]:
    """The inverse of `comma_list`: `a,b` as ("a", "b")."""
    rows = list(csv.reader([text], skipinitialspace=True))
    return tuple(name.strip() for name in rows[0]) if rows else ()
