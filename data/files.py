"""The files of a data set: which are named like images, and the content key of each. Decodes nothing.

Knows no classes, tables or splits (`data.folders`, `data.tables`, `data.splits` do).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.decode import IMAGE_SUFFIXES, read_bytes
from data.errors import BadImage, UnreadableImage
from data.samples import content_key


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in path order; hidden ones and the parts of an unfinished cache are none."""
    folders = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in folders if not _is_of_a_build(path))


def _is_of_a_build(folder: Path) -> bool:
    """Whether it is the `OUT.parts` of a cache that is being made among the images (docs/format.md)."""
    return folder.suffix == ".parts" and any((folder / name).exists() for name in ("plan.json", "lock"))


def images_in(folder: Path) -> list[Path]:
    """The files in a folder that are named like images, in path order."""
    named_so = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in named_so if not path.name.startswith(".") and path.is_file())


def images_below(folder: Path) -> list[Path]:
    """The files in a folder, and in the folders below it, that are named like images, in path order."""
    return sorted([*images_in(folder), *(path for below in subfolders(folder) for path in images_below(below))])


def hash_files(paths: Sequence[Path]) -> list[bytes | BadImage]:
    """The key of each file, or why it has none; UnreadableImage where the system does not give its bytes."""

    def hash_one(path: Path) -> bytes | BadImage:
        try:
            encoded = read_bytes(path)
        except UnreadableImage as error:
            return error
        return content_key(encoded) if encoded else BadImage("the file is empty", path)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(hash_one, paths))
