"""What DATA is: a folder, a table, a data set file (YAML), or a public data set; and all settings that go with it.

Lists no images (`data.sources.folders` and `data.sources.rows` do). A data set file has the settings of `ScanOptions`
as keys, and paths relative to itself; what is given on the command line wins.
Run: softlabel train ham.yaml t.h5 -o RUN
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from data.errors import BadOption, DataNotFound, did_you_mean, yaml_fault
from data.options import ScanOptions, flag_of
from data.sources.downloads import is_download as is_download
from data.sources.downloads import materialise

TABLE_SUFFIXES = (".csv", ".tsv")
FILE_SUFFIXES = (".yaml", ".yml")
_SPREADSHEETS = (".xls", ".xlsx", ".ods", ".numbers")
_ALIASES = {"label_column": "label_columns", "image_dir": "image_dirs", "folder": "root"}
_OF_THE_COMMAND = frozenset({"memo", "downloads", "remember_split", "skip_bad_images", "collect_bad_files"})
"""What a data set file cannot say: it is of the machine, or of what is done just now."""
_KINDS = {name: str(field.type) for name, field in ScanOptions.__dataclass_fields__.items()}
_EITHER = (("label_columns", "one_hot"), ("split_column", "folds"))
"""Pairs of settings that exclude each other: the one of the command line takes the other one's place."""


@dataclass(frozen=True)
class Source:
    """Where a data set lies, and how it is to be read."""

    root: Path
    """The folder of the images, or around them."""
    options: ScanOptions
    """Those of the command line and of the data set file, with paths that lead there from the working folder."""


def resolve(data: str | Path, options: ScanOptions) -> Source:
    """The folder and all settings that DATA stands for. Writes a public data set into `options.downloads` first."""
    found = described(data, options)
    if not is_download(found.root):
        return found
    folder = materialise(found.root, found.options)
    return Source(folder, replace(found.options, label_columns=(), image_column=None))


def described(data: str | Path, options: ScanOptions) -> Source:
    """What DATA says of itself; reads a data set file, and nothing else. A public data set is its own `root`."""
    if is_data_set_file(data):
        data, options = _read_data_set_file(Path(data), options)
    root = Path(data)
    if is_download(data):
        _check_no_table(options, f"{data} has no table: ", but=("label_columns", "image_column"))
        return Source(root, options)
    if is_table(data):
        if options.csv is not None:
            raise BadOption(f"DATA is the table {root}, and --csv names another one, {options.csv}: name one")
        root, options = root.parent, replace(options, csv=root)
    elif root.is_file():
        if root.suffix.lower() in _SPREADSHEETS:
            raise DataNotFound(f"{root} is a spreadsheet: save it as CSV (UTF-8)")
        raise DataNotFound(f"{root} is a file; expected a folder, a table (.csv) or a data set file (.yaml)")
    if options.csv is None:
        _check_no_table(options, "")
        return Source(root, options)
    if not root.is_dir():
        raise DataNotFound(f"no such folder: {root}; expected the images of {options.csv} in it")
    found = tuple(look_for(folder, root) for folder in options.image_dirs)
    return Source(root, replace(options, csv=look_for(options.csv, root), image_dirs=found))


def is_table(data: str | Path) -> bool:
    """Whether DATA is a table."""
    return Path(data).suffix.lower() in TABLE_SUFFIXES and not Path(data).is_dir() and not is_download(data)


def is_data_set_file(data: str | Path) -> bool:
    """Whether DATA is a data set file."""
    return Path(data).suffix.lower() in FILE_SUFFIXES and not Path(data).is_dir() and not is_download(data)


def look_for(path: Path, root: Path) -> Path:
    """A relative path from the working folder, or else from the data folder, where something is there."""
    return root / path if not path.exists() and (root / path).exists() else path


def _check_no_table(options: ScanOptions, why: str, but: tuple[str, ...] = ()) -> None:
    """BadOption where a setting needs a table, and there is none."""
    of_tables = ("label_columns", "one_hot", "image_column", "group_column", "split_column", "image_dirs")
    for name in (*of_tables, *["csv"] * bool(but)):
        if name not in but and (value := getattr(options, name)):
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            raise BadOption(f"{why}{flag_of(name)} {shown} goes with a table: name it with --csv FILE")


def _read_data_set_file(file: Path, given: ScanOptions) -> tuple[str | Path, ScanOptions]:
    """(DATA, options): what a data set file says, and over it what was given."""
    settings = _settings(file)
    root = settings.pop("root", None)
    over = {field.name: value for field in fields(given) if (value := getattr(given, field.name)) != field.default}
    for pair in _EITHER:
        for one, other in (pair, pair[::-1]):
            if one in over:
                settings.pop(other, None)
    try:
        options = ScanOptions(**{**settings, **over})
    except BadOption as error:
        raise BadOption(f"{file}: {error}") from error
    if root is None:
        return file.parent, options
    return root if is_download(root) else file.parent / root, options


def _settings(file: Path) -> dict[str, Any]:
    """The checked keys and values of a data set file; BadOption lists all that is wrong with it."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        loaded: Any = yaml.safe_load(text)
        repeated = _repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader))
    except OSError as error:
        raise DataNotFound(f"cannot read the data set file {file} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadOption(f"{file} is not YAML{yaml_fault(error)}; expected lines such as `csv: metadata.csv`") from error
    if not isinstance(loaded, Mapping) or not loaded:
        raise BadOption(f"{file} describes no data set; expected lines such as `csv: metadata.csv`")
    known = {"root", *_KINDS} - _OF_THE_COMMAND
    found: dict[str, Any] = {}
    problems = [f"'{key}' is said twice" for key in repeated]
    for key, value in loaded.items():
        word = str(key).replace("-", "_")
        name = _ALIASES.get(word, word)
        if name in _OF_THE_COMMAND:
            problems.append(f"'{key}' is of the command, not of the data: give it there")
        elif name not in known:
            problems.append(f"unknown key '{key}'{did_you_mean(word, [*known, *_ALIASES])}")
        elif name in found:
            problems.append(f"'{key}' is said twice")
        else:
            try:
                found[name] = _value(_KINDS.get(name, "str | None"), value, file.parent)
            except ValueError as error:
                problems.append(f"{key}: {error}")
    if problems:
        raise BadOption(f"{file}: {'; '.join(problems)}")
    return found


def _repeated_keys(node: Any) -> list[str]:
    """Keys that stand twice at the top: YAML takes the last one without a word."""
    pairs = node.value if isinstance(getattr(node, "value", None), list) else []
    counts = Counter(str(pair[0].value) for pair in pairs if isinstance(pair, tuple))
    return [key for key, count in counts.items() if count > 1]


def _value(kind: str, value: Any, folder: Path) -> Any:
    """A YAML value as the setting wants it; ValueError says what was expected."""
    if kind.startswith("tuple"):
        values = value if isinstance(value, list) else [value]
        texts = [_text(one) for one in values]
        return tuple(folder / one for one in texts) if "Path" in kind else tuple(texts)
    if kind.startswith("int"):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"expected a whole number, got {value!r}")
        return value
    if kind == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {value!r}")
        return value
    return folder / _text(value) if "Path" in kind else _text(value)


def _text(value: Any) -> str:
    """Text, or a number that is meant as one; YAML takes `no` and `2020-01-01` for something else."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"expected text, got {value!r}: put it in quotes")
    return str(value)
