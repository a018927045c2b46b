"""What a data set is, once it is found: samples with content keys, labels, groups and splits.

Reads no file (`data.scan` finds and hashes them, `data.decode` decodes) and draws no view (`data.views`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.errors import BadFile, DataNotFound
from data.splits import SPLITS

FOLDER_TASK = "class"
"""The name of the one task that a folder layout has."""


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
    group: str = ""
    """What it belongs to (lesion, patient); empty: to nothing but itself."""


@dataclass(frozen=True)
class SampleSet:
    """All samples of a data set, sorted by key within each split, and the class names of each task."""

    root: Path
    samples: tuple[Sample, ...]
    classes: Mapping[str, tuple[str, ...]]
    """Task -> class names in `sorted()` order, as torchvision and the course server have it."""
    bad: tuple[BadFile, ...] = ()
    """Those without bytes, which are no samples."""
    words: tuple[str, ...] = ()
    """DATA and its options, as words of the command line."""
    is_narrowed: bool = False
    """Whether somebody chose some of the classes: a student is to know no others then."""

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
