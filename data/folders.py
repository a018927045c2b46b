"""The two layouts of a folder of images: `DATA/<split>/<class>/*` and `DATA/<class>/*`. Reads no file.

Images in folders below a class folder are of that class. A folder `_unlabelled` beside the classes or the splits has
images without a label. Run: softlabel train DATA t.h5 -o RUN
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.decode import IMAGE_SUFFIXES
from data.errors import BadSamples, DataNotFound
from data.files import images_below, images_in, subfolders
from data.found import SPLIT_NAMES, Found, Listing, split_of
from data.samples import FOLDER_TASK

UNLABELLED_FOLDERS = ("_unlabelled", "_unlabeled")
_LAYOUTS = "DATA/<split>/<class>/* or DATA/<class>/*"


def in_folders(root: Path) -> Listing:
    """Every image of a folder layout, in path order."""
    if not root.is_dir():
        raise DataNotFound(f"no such folder: {root}; expected {_LAYOUTS} with images")
    folders = subfolders(root)
    named = [folder for folder in folders if folder.name not in UNLABELLED_FOLDERS]
    unknown = [folder.name for folder in named if not split_of(folder.name)]
    only_splits = bool(named) and not unknown and not any(images_in(folder) for folder in named)
    if only_splits or "train" in {folder.name.casefold() for folder in named}:
        if unknown:
            raise BadSamples(
                f"{root} has the folders {', '.join(unknown)} beside its splits; "
                f"expected only {', '.join(SPLIT_NAMES)}: move the others away"
            )
        files = [found for folder in folders for found in _of_split(root, folder)]
        outside = [root, *named]
    else:
        _check_is_no_split(root)
        _check_level(root, named)
        files = [found for folder in folders for found in _of_class(root, "", folder)]
        outside = [root]
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataNotFound(
            f"no images in {root}; expected {_LAYOUTS} with files named {suffixes}{_without_folder(outside)}"
        )
    return Listing(files, notices=[notice] if (notice := _without_folder(outside)[2:]) else [])


def _of_split(root: Path, folder: Path) -> list[Found]:
    """The images of a split; those without a label beside the splits are train's."""
    if folder.name in UNLABELLED_FOLDERS:
        return _of_class(root, "train", folder)
    split = split_of(folder.name)
    return [found for label in subfolders(folder) for found in _of_class(root, split, label)]


def _of_class(root: Path, split: str, folder: Path) -> list[Found]:
    labels = {} if folder.name in UNLABELLED_FOLDERS else {FOLDER_TASK: folder.name}
    return [Found(path, path.relative_to(root).as_posix(), split, labels) for path in images_below(folder)]


def _without_folder(folders: Sequence[Path]) -> str:
    """What to say of images that lie where no class is."""
    loose = [path for folder in folders for path in images_in(folder)]
    if not loose:
        return ""
    return (
        f"; {len(loose):,} images lie in no class folder and are not used (first: {loose[0]}): "
        f"{UNLABELLED_FOLDERS[0]}/ is the folder for images without a label, --csv names a table that has the labels"
    )


def _check_is_no_split(root: Path) -> None:
    """BadSamples for `images/test` beside `images/train`: taken for a data set it would be split once more."""
    here = root.resolve()
    beside = {folder.name for folder in subfolders(here.parent)} if split_of(here.name) else set()
    if sum(1 for name in beside if split_of(name)) > 1:
        raise BadSamples(f"{root} is one split of {here.parent}: name that folder as DATA; --split chooses a split")


def _check_level(root: Path, folders: Sequence[Path]) -> None:
    """BadSamples where the classes seem to lie further down than they should."""
    if any(images_in(folder) for folder in folders):
        return
    filled = _filled(folders)
    if len(filled) == 1:
        inner = filled[0]
        while len(below := _filled(subfolders(inner))) == 1 and not images_in(below[0]):
            inner = below[0]
        if len(below) > 1:
            raise BadSamples(f"{root} has no classes in it, they are further down: name {inner} as DATA")
    classes = [{below.name for below in _filled(subfolders(folder))} for folder in filled]
    if len(filled) > 1 and len(shared := sorted(set.intersection(*classes))) > 1:
        raise BadSamples(
            f"{', '.join(folder.name for folder in filled)} in {root} hold folders of the same names "
            f"({', '.join(shared[:5])}{', ...' if len(shared) > 5 else ''}): name one of them as DATA; or rename them, "
            "if they are splits, to train, val and test"
        )


def _filled(folders: Sequence[Path]) -> list[Path]:
    return [folder for folder in folders if images_below(folder)]
