"""The two layouts of a folder of images: `DATA/<split>/<class>/*` and `DATA/<class>/*`. Opens no file.

Images in folders below a class folder are of that class. A folder `_unlabelled` beside the classes or the splits has
images without a label. Run: softlabel train DATA t.h5 -o RUN
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from data.decode import IMAGE_SUFFIXES
from data.errors import BadSamples, DataNotFound
from data.files import images_below, notice_of_others, notice_of_outputs, subfolders
from data.samples import FOLDER_TASK
from data.sources.found import SPLIT_NAMES, Found, Listing, split_of

UNLABELLED_FOLDERS = ("_unlabelled", "_unlabeled")
_LAYOUTS = "DATA/<split>/<class>/* or DATA/<class>/*"
_Parts = list[str]
"""A path relative to the data folder: its folders, and the file."""


def in_folders(root: Path) -> Listing:
    """Every image of a folder layout, in path order."""
    if not root.is_dir():
        raise DataNotFound(f"no such folder: {root}; expected {_LAYOUTS} with images")
    there = images_below(root)
    start = len(os.path.join(root, ""))
    parts = [path[start:].split(os.sep) for path in there.paths]
    every = [*parts, *(file.path[start:].split(os.sep) for file in there.bad)]
    has_splits = _has_splits(root, every)
    if not has_splits:
        _check_is_no_split(root)
        _check_level(root, parts)
    found, loose = list[Found](), list[str]()
    for path, part in zip(there.paths, parts, strict=True):
        one = _found(path, part, has_splits)
        found.append(one) if one else loose.append(path)
    notice = _of_loose(loose)
    if not found and not there.bad:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataNotFound(
            f"no images in {root}; expected {_LAYOUTS} with files named {suffixes}{'; ' * bool(notice)}{notice}"
        )
    others = (notice_of_others(there.ignored), notice_of_outputs(there.outputs), _of_empty(root, every, has_splits))
    return Listing(found, bad=there.bad, notices=[one for one in (notice, *others) if one])


def _has_splits(root: Path, parts: Sequence[_Parts]) -> bool:
    """Whether the folders are splits; BadSamples where some are, and some are not."""
    folders = {part[0] for part in parts if len(part) > 1} - set(UNLABELLED_FOLDERS)
    splits = {folder for folder in folders if split_of(folder)}
    unknown = sorted(folders - splits)
    only_splits = bool(splits) and not unknown and not any(len(part) == 2 and part[0] in splits for part in parts)
    if not only_splits and "train" not in {folder.casefold() for folder in splits}:
        return False
    if unknown:
        raise BadSamples(
            f"{root} has the folders {', '.join(unknown)} beside its splits; "
            f"expected only {', '.join(SPLIT_NAMES)}: move the others away"
        )
    return True


def _found(path: str, part: _Parts, has_splits: bool) -> Found | None:
    """The image with what its folders say of it; None where they say nothing. Beside the splits it is train's."""
    split, folders = "", part[:-1]
    if has_splits and folders and folders[0] in UNLABELLED_FOLDERS:
        split = "train"
    elif has_splits and folders:
        split, folders = split_of(folders[0]), folders[1:]
    if not folders:
        return None
    labels = {} if folders[0] in UNLABELLED_FOLDERS else {FOLDER_TASK: folders[0]}
    return Found(path, "/".join(part), split, labels)


def _of_empty(root: Path, parts: Sequence[_Parts], has_splits: bool) -> str:
    """What to say of class folders that hold no image anywhere: they are no class, and columns move up."""
    around = subfolders(root)
    if has_splits:
        around = [label for split in around if split_of(split.name) for label in subfolders(split)]
    classes = {part[1 if has_splits else 0] for part in parts if len(part) > (2 if has_splits else 1)}
    empty = sorted({folder.name for folder in around} - classes - set(UNLABELLED_FOLDERS))
    return f"folders without an image, which are no class: {', '.join(empty)}" if empty else ""


def _of_loose(loose: Sequence[str]) -> str:
    """What to say of images that lie where no class is."""
    if not loose:
        return ""
    return (
        f"{len(loose):,} images lie in no class folder and are not used (first: {loose[0]}): "
        f"{UNLABELLED_FOLDERS[0]}/ is the folder for images without a label, --csv names a table that has the labels"
    )


def _check_is_no_split(root: Path) -> None:
    """BadSamples for `images/test` beside `images/train`: taken for a data set it would be split once more."""
    here = root.resolve()
    beside = {folder.name for folder in subfolders(here.parent)} if split_of(here.name) else set()
    if sum(1 for name in beside if split_of(name)) > 1:
        raise BadSamples(f"{root} is one split of {here.parent}: name that folder as DATA; --split chooses a split")


def _check_level(root: Path, parts: Sequence[_Parts]) -> None:
    """BadSamples where the classes seem to lie further down than they should."""
    deep = [part for part in parts if len(part) > 1 and part[0] not in UNLABELLED_FOLDERS]
    if not deep or any(len(part) == 2 for part in deep):
        return
    common = os.path.commonpath([os.sep.join(part[:-1]) for part in deep])
    if common and not any(len(part) == len(common.split(os.sep)) + 1 for part in deep):
        raise BadSamples(f"{root} has no classes in it, they are further down: name {root / common} as DATA")
    folders = sorted({part[0] for part in deep})
    shared = sorted(set.intersection(*({part[1] for part in deep if part[0] == folder} for folder in folders)))
    if len(folders) > 1 and len(shared) > 1:
        raise BadSamples(
            f"{', '.join(folders)} in {root} hold folders of the same names "
            f"({', '.join(shared[:5])}{', ...' if len(shared) > 5 else ''}): name one of them as DATA; or rename them, "
            "if they are splits, to train, val and test"
        )
