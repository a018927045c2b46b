"""Files that are to be samples, and the words that folders and tables have for splits. Reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from data.errors import BadFile

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""What others call a split -> what it is called here."""


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


@dataclass(frozen=True)
class Listing:
    """What a folder or a table says that there is."""

    found: list[Found]
    bad: list[BadFile] = field(default_factory=list)
    """What is no file, or nowhere."""
    notices: list[str] = field(default_factory=list)


def split_of(word: str) -> str:
    """The split that somebody calls so, in any case; empty where it is none."""
    return SPLIT_NAMES.get(word.strip().casefold(), "")
