"""The files of a data set: which are named like images, and the content key of each. Decodes nothing.

Knows no classes, tables or splits (`data.folders`, `data.tables`, `data.splits` do).
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.decode import IMAGE_SUFFIXES, read_bytes
from data.errors import BadImage, UnreadableImage, bullet_list
from data.samples import content_key

log = logging.getLogger(__name__)


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


def hash_files(paths: list[Path], skip_bad: bool) -> list[bytes | None]:
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
