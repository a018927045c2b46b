"""The files of a data set: which are named like images, what is wrong with them, the content key of each. Decodes none.

Knows no classes, tables or splits (`data.sources`, `data.splits` do). Nothing but a regular file is ever opened: to
read a named pipe would be to wait for ever.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from data.decode import EMPTY, IMAGE_SUFFIXES
from data.errors import BadFile, BadImage, UnreadableImage, bullet_list
from data.hashes import RememberedHashes
from data.options import ScanOptions
from data.samples import content_key

log = logging.getLogger(__name__)

MAX_LISTED = 100
"""Bad files that a message lists."""
_BATCH = 990
"""Files that are looked up, hashed and remembered at a time: sqlite takes 999 values in a query."""
_OUTPUTS = frozenset({"best.pt", "last.pt", "seeds.json", "metrics.json", "fit_config.json", "demo.log"})
"""Files of which each folder that our commands write has one: its figures are no images of a class."""
_KINDS = (
    (stat.S_ISDIR, "a folder that is named like an image"),
    (stat.S_ISFIFO, "a named pipe, not a file"),
    (stat.S_ISSOCK, "a socket, not a file"),
    (stat.S_ISCHR, "a device, not a file"),
    (stat.S_ISBLK, "a device, not a file"),
)
_OF_THE_FILE = {
    errno.ELOOP: "a link in a circle of links",
    errno.EACCES: "no permission to read it",
    errno.EPERM: "no permission to read it",
    errno.ENAMETOOLONG: "a link to a name that is too long",
}
"""What errors of the system say of the file; all others are about the disk or network it lies on."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class ImageFiles:
    """What a walk through folders found."""

    paths: list[str] = field(default_factory=list)
    """Regular files that are named like images, or links to such; in path order."""
    bad: list[BadFile] = field(default_factory=list)
    """What is named like an image and is none, and folders that cannot be walked through."""
    outputs: list[str] = field(default_factory=list)
    """Folders that our commands wrote, which were not looked into."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Suffix -> number of other files; hidden ones and those at the top, such as a table, are not counted."""


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, in path order; hidden ones and those that our commands write are none."""
    folders = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return sorted(path for path in folders if not (_is_of_a_build(path) or _has_outputs(os.listdir(path))))


def images_below(folder: str | Path) -> ImageFiles:
    """Every file below a folder that is named like an image, links followed as torchvision's ImageFolder does.

    Opens no file. A link that leads back into a folder above it is bad, and not followed.
    """
    found = ImageFiles()
    above = [Path(folder).resolve(), *Path(folder).resolve().parents]
    _walk(os.fspath(folder), frozenset(_identity(os.stat(path)) for path in above), found, at_top=True)
    return found


def _walk(folder: str, above: frozenset[tuple[int, int]], found: ImageFiles, *, at_top: bool = False) -> None:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        found.bad.append(_bad_file(folder, error))
        return
    if not at_top and _has_outputs([entry.name for entry in listed]):
        found.outputs.append(folder)
        return
    for entry in listed:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            continue
        if suffix in IMAGE_SUFFIXES and entry.is_file(follow_symlinks=False):
            found.paths.append(entry.path)
            continue
        status = _status(entry.path)
        if suffix in IMAGE_SUFFIXES:
            bad = _why_no_file(entry.path, status)
            found.bad.append(bad) if bad else found.paths.append(entry.path)
        elif isinstance(status, OSError):
            # A link to nothing may have led to a folder of images on another disk; `notes.txt` would have been ignored.
            if not (suffix and isinstance(status, FileNotFoundError)):
                found.bad.append(_bad_file(entry.path, status))
        elif not stat.S_ISDIR(status.st_mode):
            if not at_top:
                found.ignored[suffix] += 1
        elif _identity(status) in above:
            found.bad.append(BadFile(entry.path, "a link that leads back into a folder above it"))
        elif not _is_of_a_build(Path(entry.path)):
            _walk(entry.path, above | {_identity(status)}, found)


def _has_outputs(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names is a run, a fit or an evaluation that was written among the images."""
    return not _OUTPUTS.isdisjoint(names)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_of_a_build(folder: Path) -> bool:
    """Whether it is the `OUT.parts` of a cache that is being made among the images (docs/format.md)."""
    return folder.suffix == ".parts" and any((folder / name).exists() for name in ("plan.json", "lock"))


def _status(path: str) -> os.stat_result | OSError:
    try:
        return os.stat(path)
    except OSError as error:
        return error


def _why_no_file(path: str, status: os.stat_result | OSError) -> BadFile | None:
    """What is wrong with a file before it is opened, or None."""
    if isinstance(status, OSError):
        return _bad_file(path, status)
    reason = next((reason for is_it, reason in _KINDS if is_it(status.st_mode)), None)
    return BadFile(path, reason) if reason else None


def _bad_file(path: str, error: OSError) -> BadFile:
    if error.errno == errno.ENOENT and os.path.islink(path):
        return BadFile(path, "a link to nothing")
    if error.errno in _OF_THE_FILE:
        return BadFile(path, _OF_THE_FILE[error.errno])
    return BadFile(path, f"cannot be read ({error.strerror or error})", is_system=True)


def hash_files(paths: Sequence[str], memo: Path | None = None) -> tuple[list[bytes | None], list[BadFile]]:
    """(the content key of each file, None of bad ones; the bad ones): read on all cores, or remembered in `memo`."""
    keys: list[bytes | None] = []
    bad: list[BadFile] = []
    progress = tqdm(total=len(paths), desc="hash images", unit="image", disable=None, leave=False, delay=1)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, RememberedHashes(memo) as remembered, progress:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            parts = pool.map(lambda part: [_status(path) for path in part], _slices(batch, 8))
            status = dict(zip(batch, chain.from_iterable(parts), strict=True))
            sound = {path: result for path, result in status.items() if isinstance(result, os.stat_result)}
            found: dict[str, bytes | BadFile] = {**remembered.find(sound)}
            new = [path for path in batch if path not in found]
            found |= zip(new, pool.map(lambda path, of=status: _key_of(path, of[path]), new), strict=True)
            remembered.add({path: (sound[path], key) for path in new if isinstance(key := found[path], bytes)})
            for path in batch:
                key = found[path]
                keys.append(key if isinstance(key, bytes) else None)
                if isinstance(key, BadFile):
                    bad.append(key)
            progress.update(len(batch))
    return keys, bad


def _slices(items: Sequence[Item], n: int) -> Iterator[Sequence[Item]]:
    """Handing each file over to a thread by itself would cost as much as asking for its status."""
    size = -(-len(items) // n)
    return (items[start : start + size] for start in range(0, len(items), size))


def _key_of(path: str, status: os.stat_result | OSError) -> bytes | BadFile:
    encoded = _encoded(path, status)
    return encoded if isinstance(encoded, BadFile) else content_key(encoded)


def read_file(path: str) -> bytes | BadFile:
    """The bytes of an image file that somebody named, or why there are none: the name may be wrong, too."""
    status = _status(path)
    if isinstance(status, FileNotFoundError | NotADirectoryError) and not os.path.islink(path):
        return BadFile(path, "no such file", is_missing=True)
    return _encoded(path, status)


def _encoded(path: str, status: os.stat_result | OSError) -> bytes | BadFile:
    """The bytes of a regular file; nothing else is ever opened."""
    if bad := _why_no_file(path, status):
        return bad
    try:
        with open(path, "rb") as file:
            encoded = file.read()
    except OSError as error:
        return _bad_file(path, error)
    return encoded or BadFile(path, EMPTY)


def check_bad_files(bad: Sequence[BadFile], n_files: int, options: ScanOptions) -> None:
    """List the files without bytes: as an error, or as a notice where they may be left out, or leave that to others.

    Errors of a disk or network are always one: they say nothing about the images. So is it where nothing is left.
    """
    if failed := [file for file in bad if file.is_system]:
        raise UnreadableImage(
            f"{len(failed):,} of {n_files:,} images cannot be read; repeat the same command when they can be read, or "
            f"remove them:\n{listed(failed)}"
        )
    if not bad or options.collect_bad_files:
        return
    n_missing = sum(file.is_missing for file in bad)
    what = {0: "cannot be read", len(bad): "are not there"}.get(n_missing, "cannot be read or are not there")
    remedy = "complete the images (--image-dir)" if n_missing else "remove or replace them"
    if not options.skip_bad_images:
        raise BadImage(
            f"{len(bad):,} of {n_files:,} images {what}; {remedy}, or pass --skip-bad-images:\n{listed(bad)}"
        )
    if len(bad) == n_files:
        raise BadImage(f"none of {n_files:,} images can be read: is this the right folder?\n{listed(bad)}")
    log.info("%s of %s images %s and are left out:\n%s", f"{len(bad):,}", f"{n_files:,}", what, listed(bad))


def listed(bad: Iterable[BadFile]) -> str:
    """A line for each: path and reason."""
    return bullet_list((f"{file.path}: {file.reason}" for file in bad), MAX_LISTED)


def notice_of_others(ignored: Mapping[str, int]) -> str:
    """What to say of the files that are not named like images; empty where there are none."""
    counts = ", ".join(
        f"{suffix or 'no suffix'} {n:,}" for suffix, n in sorted(ignored.items(), key=lambda one: (-one[1], one[0]))
    )
    return f"ignored: {sum(ignored.values()):,} files that are not named like images ({counts})" if counts else ""


def notice_of_outputs(folders: Sequence[str]) -> str:
    """What to say of folders that our commands wrote among the images; empty where there are none."""
    if not folders:
        return ""
    return f"not looked into: {len(folders):,} folders that softlabel wrote (first: {folders[0]})"


def notice_of_names(names: Iterable[str]) -> str:
    """What to say of names that are not UTF-8: they work, but nobody can read or type them."""
    odd = [name for name in names if not name.isascii() and name.encode(errors="ignore").decode() != name]
    shown = bullet_list(odd, 3)
    return f"{len(odd):,} names of images are not UTF-8, and are shown with escapes:\n{shown}" if odd else ""
