"""The two layouts of a folder of images: `DATA/<split>/<class>/*` and `DATA/<class>/*`. Reads no file.

Run: softlabel train DATA t.h5 -o RUN
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.decode import IMAGE_SUFFIXES
from data.errors import BadSamples, DataNotFound
from data.files import ImageFiles, images_below, subfolders
from data.samples import FOLDER_TASK

_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Found:
    """A file that is to be a sample, before anybody has looked into it."""

    path: str
    name: str
    """Path relative to the data folder, with /, for people."""
    split: str = ""
    """Empty where the data set does not say."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Task -> class name; a task without a label is absent."""
    group: str = ""
    """Empty where it belongs to nothing but itself."""


def in_folders(root: Path) -> tuple[list[Found], ImageFiles]:
    """(every image of a folder layout, in path order; what else a walk through the folders found)."""
    if not root.is_dir():
        raise DataNotFound(f"no such folder: {root}; expected DATA/<split>/<class>/* or DATA/<class>/* with images")
    there = images_below(root)
    start = len(os.path.join(root, ""))
    parts = [path[start:].split(os.sep) for path in [*there.paths, *(file.path for file in there.bad)]]
    folders = {part[0] for part in parts if len(part) > 1}
    unknown = sorted(folders - set(_SPLIT_FOLDERS))
    only_splits = bool(folders) and not unknown and not any(len(part) == 2 for part in parts)
    has_splits = only_splits or "train" in folders
    if has_splits and unknown:
        raise BadSamples(
            f"{root} has the folders {', '.join(unknown)} beside its splits; "
            f"expected only {', '.join(_SPLIT_FOLDERS)}: move the others away"
        )
    if not has_splits:
        _check_is_no_split(root)
    depth = 2 if has_splits else 1
    files = [
        Found(
            path, "/".join(part), _SPLIT_FOLDERS[part[0]] if has_splits else "", {FOLDER_TASK: part[depth - 1]}
        ) for path, part in zip(there.paths, parts, strict=False) if len(part) > depth
    ]  # fmt: skip
    if not files and not there.bad:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataNotFound(
            f"no images in {root}; expected DATA/<split>/<class>/* or DATA/<class>/* with files named {suffixes}"
        )
    return files, there


def _check_is_no_split(root: Path) -> None:
    """BadSamples for `images/test` beside `images/train`: taken for a data set it would be split once more."""
    here = root.resolve()
    beside = {folder.name for folder in subfolders(here.parent)} if here.name in _SPLIT_FOLDERS else set()
    if len(beside & set(_SPLIT_FOLDERS)) > 1:
        raise BadSamples(f"{root} is one split of {here.parent}: name that folder as DATA; --split chooses a split")
