"""What teachers said of themselves when they were loaded before, so that a build that needs no answer loads none.

A convenience: a teacher is known by every file that it is made of (size, times, inode) and by what it was asked, and
whatever is wrong with the memory, it is loaded and asked anew. Never stands in for an answer.
Run: softlabel cache build DATA -o t.h5 --store URL
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cache import durable
from cache.errors import CacheError, ManifestError
from cache.manifest import parse_strict
from pipeline.teachers.teacher import TeacherFacts

log = logging.getLogger(__name__)

_FORMAT = 1
_PACKAGES = ("softlabel", "torch", "torchvision", "transformers", "timm")
_MAX_FILES = 1000
_RACY_S = 2.0
"""A file that changed so shortly before it was read may change once more without another time stamp."""


class KnownTeachers:
    """A folder with a small file for each (teacher, question); None remembers nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def recall(self, source: str, question: Mapping[str, Any]) -> TeacherFacts | None:
        """What the teacher said when it was asked this, if none of its files was touched since; else None.

        `question` is all that its answer depends on beside its files, in plain values.
        """
        path = self._path(source, question)
        if path is None:
            return None
        try:
            told = parse_strict(path.read_bytes())
            return TeacherFacts(**{**told, "classes": tuple(told["classes"])})
        except FileNotFoundError:
            return None
        except (OSError, ManifestError, TypeError, LookupError) as error:
            log.info("%s says nothing of the teacher (%s): it is loaded", path, error)
            return None

    def remember(self, source: str, question: Mapping[str, Any], facts: TeacherFacts) -> None:
        """Keep what a teacher said of itself, which was loaded from files that did not change just now."""
        path = self._path(source, question)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.write_atomic(path, json.dumps(dataclasses.asdict(facts), allow_nan=False).encode())
        except (OSError, CacheError) as error:
            log.info("%s is not remembered: %s", source, error)

    def forget(self, source: str, question: Mapping[str, Any]) -> None:
        """Drop what was remembered, as the loaded teacher says otherwise."""
        path = self._path(source, question)
        if path is not None:
            path.unlink(missing_ok=True)

    def _path(self, source: str, question: Mapping[str, Any]) -> Path | None:
        files = None if self._folder is None else _stamps(_files_of(source))
        if self._folder is None or not files:
            return None
        asked = {"format": _FORMAT, "files": files, "versions": _versions(), "question": question}
        content = json.dumps(asked, sort_keys=True).encode("utf-8", "surrogatepass")
        return self._folder / f"{hashlib.sha256(content).hexdigest()}.json"


def _files_of(source: str) -> Sequence[Path]:
    """The files of a teacher that is a folder, a file or a model in the local Hugging Face cache; () of others."""
    path = Path(source)
    if path.is_file():
        return (path,)
    if path.is_dir():
        return _inside(path)
    if source.count("/") != 1:
        return ()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(source, "config.json")
    except HFValidationError:
        return ()
    return _inside(Path(config).parent) if isinstance(config, str) else ()


def _inside(folder: Path) -> Sequence[Path]:
    """() where there are so many files that this is no model."""
    found: list[Path] = []
    for at, _, names in os.walk(folder):
        found += [Path(at, name) for name in names]
        if len(found) > _MAX_FILES:
            return ()
    return sorted(found)


def _stamps(files: Iterable[Path]) -> list[tuple[str, int, int, int, int]]:
    """Which files these are; [] where one is gone, is no file, or changed just now."""
    newest_ns, stamps = int((time.time() - _RACY_S) * 1e9), []
    for path in files:
        try:
            status = path.stat()
        except OSError:
            return []
        if not stat.S_ISREG(status.st_mode) or max(status.st_mtime_ns, status.st_ctime_ns) > newest_ns:
            return []
        stamps.append((str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    return stamps


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found
