"""Samples of an image folder: content keys, labels, splits, duplicates.

Never decodes an image (`data.decode` does) and never draws a view (`data.views`). Two layouts:
`DATA/<split>/<class>/*`, or `DATA/<class>/*`, which is split once and remembered in a CSV beside the classes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from data.decode import IMAGE_SUFFIXES, read_bytes
from data.errors import BadImage, BadSamples, DataNotFound, UnreadableImage, bullet_list
from data.options import ScanOptions
from data.splits import SPLITS, load_or_make

log = logging.getLogger(__name__)

FOLDER_TASK = "class"
"""The name of the one task that a folder layout has."""
_SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing with labels: its content key, where it lies, what it is called in each task."""

    key: bytes
    """BLAKE2b-128 of the file's bytes, 16 bytes: the sample's identity wherever the file lies."""
    path: str
    name: str
    """Path relative to the data folder, for people."""
    split: str
    labels: Mapping[str, str]
    """Task -> class name; a task without a label is absent."""


@dataclass(frozen=True)
class SampleSet:
    """All samples of a data folder, sorted by key within each split, and the class names of each task."""

    root: Path
    samples: tuple[Sample, ...]
    classes: Mapping[str, tuple[str, ...]]
    """Task -> class names in `sorted()` order, as torchvision and the course server have it."""

    def of_split(self, split: str) -> list[Sample]:
        """The samples of one split; DataNotFound names the splits there are."""
        found = [sample for sample in self.samples if sample.split == split]
        if not found:
            there = ", ".join(self.splits)
            raise DataNotFound(f"{self.root} has no images in split '{split}'; it has: {there}")
        return found

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold samples, in the order train, val, test."""
        present = {sample.split for sample in self.samples}
        return tuple(split for split in SPLITS if split in present)


def content_key(encoded: bytes) -> bytes:
    """BLAKE2b-128 of a file's bytes: 16 bytes."""
    return hashlib.blake2b(encoded, digest_size=16).digest()


def scan_folder(root: str | Path, options: ScanOptions = ScanOptions()) -> SampleSet:
    """Find, hash and label every image below `root`.

    Raises DataNotFound, UnreadableImage (files that cannot be read, all listed), BadImage (empty ones) or BadSamples
    (duplicates, all listed).
    """
    root = Path(root)
    files = _list_images(root)
    keys = _hash_files([path for path, _, _ in files], options.skip_bad_images)
    samples = [
        Sample(key, str(path), path.relative_to(root).as_posix(), split, {FOLDER_TASK: label})
        for key, (path, split, label) in zip(keys, files, strict=True)
        if key is not None
    ]
    if any(not sample.split for sample in samples):
        label_of = {sample.key: sample.labels[FOLDER_TASK] for sample in samples}
        name_of = {sample.key: sample.name for sample in samples}
        path = options.split_file or root / "splits.csv"
        assigned = load_or_make(label_of, name_of, path, save=options.remember_split)
        samples = [replace(sample, split=assigned[sample.key]) for sample in samples]
    samples = _without_duplicates(samples, options.allow_duplicates)
    samples.sort(key=lambda sample: (SPLITS.index(sample.split), sample.key, sample.name))
    classes = tuple(sorted({sample.labels[FOLDER_TASK] for sample in samples}))
    if len(classes) < 2:
        raise BadSamples(f"{root} has images of one class only ({classes[0]}); a classifier needs at least two")
    return SampleSet(root, tuple(samples), {FOLDER_TASK: classes})


def _list_images(root: Path) -> list[tuple[Path, str, str]]:
    """(path, split or "", class) of every image, in path order."""
    if not root.is_dir():
        raise DataNotFound(f"no such folder: {root}; expected DATA/<split>/<class>/* or DATA/<class>/* with images")
    folders = _subfolders(root)
    unknown = [folder.name for folder in folders if folder.name not in _SPLIT_FOLDERS]
    only_splits = bool(folders) and not unknown and not any(_images_in(folder) for folder in folders)
    if only_splits or "train" in {folder.name for folder in folders}:
        if unknown:
            raise BadSamples(
                f"{root} has the folders {', '.join(unknown)} beside its splits; "
                f"expected only {', '.join(_SPLIT_FOLDERS)}: move the others away"
            )
        pairs = [(split, label) for split in folders for label in _subfolders(split)]
        files = [(path, _SPLIT_FOLDERS[split.name], label.name) for split, label in pairs for path in _images_in(label)]
    else:
        _check_is_no_split(root)
        files = [(path, "", label.name) for label in folders for path in _images_in(label)]
    if not files:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DataNotFound(
            f"no images in {root}; expected DATA/<split>/<class>/* or DATA/<class>/* with files named {suffixes}"
        )
    return files


def _check_is_no_split(root: Path) -> None:
    """BadSamples for `images/test` beside `images/train`: taken for a data set it would be split once more."""
    here = root.resolve()
    beside = {folder.name for folder in _subfolders(here.parent)} if here.name in _SPLIT_FOLDERS else set()
    if len(beside & set(_SPLIT_FOLDERS)) > 1:
        raise BadSamples(f"{root} is one split of {here.parent}: name that folder as DATA; --split chooses a split")


def _subfolders(folder: Path) -> list[Path]:
    folders = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in folders if not _is_of_a_build(path))


def _is_of_a_build(folder: Path) -> bool:
    """Whether it is the `OUT.parts` of a cache that is being made among the images (docs/format.md)."""
    return folder.suffix == ".parts" and any((folder / name).exists() for name in ("plan.json", "lock"))


def _images_in(folder: Path) -> list[Path]:
    named_so = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in named_so if not path.name.startswith(".") and path.is_file())


def _hash_files(paths: list[Path], skip_bad: bool) -> list[bytes | None]:
    """The key of each file; None, with a notice, of an empty one that `skip_bad` leaves out."""
    unreadable: list[str] = []
    empty: list[str] = []

    def hash_one(path: Path) -> bytes | None:
        try:
            encoded = read_bytes(path)
        except UnreadableImage as error:
            unreadable.append(str(error))
            return None
        if not encoded:
            empty.append(f"{path}: the file is empty")
            return None
        return content_key(encoded)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        keys = list(pool.map(hash_one, paths))
    if unreadable:
        raise UnreadableImage(
            f"{len(unreadable):,} of {len(paths):,} images cannot be read; repeat the same command when they can be "
            f"read, or remove them:\n{bullet_list(sorted(unreadable))}"
        )
    if empty and not skip_bad:
        raise BadImage(
            f"{len(empty):,} of {len(paths):,} images cannot be read; remove or replace them, or pass "
            f"--skip-bad-images:\n{bullet_list(sorted(empty))}"
        )
    if empty:
        log.info("%s images cannot be read and are left out:\n%s", f"{len(empty):,}", bullet_list(sorted(empty)))
    return keys


def _without_duplicates(samples: list[Sample], allowed: bool) -> list[Sample]:
    """The same bytes twice in one class and split count once; elsewhere they are a leak or a contradiction."""
    by_key: dict[bytes, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_key[sample.key].append(sample)
    conflicts, repeats, kept = [], 0, []
    for same in by_key.values():
        distinct = list({(sample.split, *sorted(sample.labels.items())): sample for sample in reversed(same)}.values())
        kept += distinct
        repeats += len(same) - len(distinct)
        if len(distinct) > 1:
            conflicts.append(" = ".join(sorted(sample.name for sample in distinct)))
    if conflicts and not allowed:
        raise BadSamples(
            f"{len(conflicts):,} images stand in two classes or two splits with the same bytes (a leak, or a wrong "
            f"label); remove one of each, or pass --allow-duplicates:\n{bullet_list(sorted(conflicts))}"
        )
    if repeats:
        log.info("%s images repeat another one of their class byte for byte: each counts once", f"{repeats:,}")
    return kept
