"""The two layouts of a folder of images: `DATA/<split>/<class>/*` and `DATA/<class>/*`. Reads no file.

Run: softlabel train DATA t.h5 -o RUN
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.decode import IMAGE_SUFFIXES
from data.errors import BadSamples, DataNotFound
from data.files import images_in, subfolders
from data.samples import FOLDER_TASK

_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Found:
    """A file that is to be a sample, before anybody has looked into it."""

    path: Path
    name: str
    """Path relative to the data folder, with /, for people."""
    split: str = ""
    """Empty where the data set does not say."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Task -> class name; a task without a label is absent."""
    group: str = ""
    """Empty where it belongs to nothing but itself."""


def in_folders(root: Path) -> list[Found]:
    """Every image of a folder layout, in path order."""
    if not root.is_dir():
        raise DataNotFound(f"no such folder: {root}; expected DATA/<split>/<class>/* or DATA/<class>/* with images")
    folders = subfolders(root)
    unknown = [folder.name for folder in folders if folder.name not in _SPLIT_FOLDERS]
    only_splits = bool(folders) and not unknown and not any(images_in(folder) for folder in folders)
    if only_splits or "train" in {folder.name for folder in folders}:
        if unknown:
            raise BadSamples(
                f"{root} has the folders {', '.join(unknown)} beside its splits; "
                f"expected only {', '.join(_SPLIT_FOLDERS)}: move the others away"
            )
        pairs = [(split, label) for split in folders for label in subfolders(split)]
        files = [
            _found(root, path, _SPLIT_FOLDERS[split.name], label.name)
            for split, label in pairs for path in images_in(label)
        ]  # fmt: skip
    else:
        _check_is_no_split(root)
        files = [_found(root, path, "", label.name) for label in folders for path in images_in(label)]
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataNotFound(
            f"no images in {root}; expected DATA/<split>/<class>/* or DATA/<class>/* with files named {suffixes}"
        )
    return files


def _found(root: Path, path: Path, split: str, label: str) -> Found:
    return Found(path, path.relative_to(root).as_posix(), split, {FOLDER_TASK: label})


def _check_is_no_split(root: Path) -> None:
    """BadSamples for `images/test` beside `images/train`: taken for a data set it would be split once more."""
    here = root.resolve()
    beside = {folder.name for folder in subfolders(here.parent)} if here.name in _SPLIT_FOLDERS else set()
    if len(beside & set(_SPLIT_FOLDERS)) > 1:
        raise BadSamples(f"{root} is one split of {here.parent}: name that folder as DATA; --split chooses a split")
