"""Rows that a build takes over from other caches of its recipe instead of computing them.

Loads no teacher and looks at no image. Run: softlabel cache build DATA -o t.h5 --reuse OLD.h5
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import CacheReader, Manifest, SegmentedWriter
from cache.errors import CacheMismatch
from cache.recipes import apart
from cache.rows import FeatureShapes, Pair
from pipeline.errors import SettingError
from pipeline.targets import SEEN
from pipeline.wanted import Wanted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reused:
    """What was taken from one cache."""

    path: Path
    n_rows: int
    provenance: Mapping[str, Any]
    """What that cache says of the making of its rows."""


def check_readable(reuse: Sequence[str | Path], out: Path) -> None:
    """CacheError for files that are no caches, and for `out` itself: asked before the teacher is loaded."""
    for path in map(Path, reuse):
        if os.path.realpath(path) == os.path.realpath(out):
            raise CacheMismatch(f"--reuse {path} is the output itself, whose rows stay anyway: leave it out")
        CacheReader(path, memory_map=False)


def check_reusable(reuse: Sequence[str | Path], manifest: Manifest, features: FeatureShapes) -> None:
    """Refuse caches whose rows cannot become rows of this recipe, before anything is copied or computed.

    CacheMismatch for another recipe, with every field that differs; SettingError for other features.
    """
    for path in map(Path, reuse):
        reader = CacheReader(path, memory_map=False)
        names = "it", "what is to be written"
        if found := apart(reader.manifest.identity, manifest.identity, names, "stored against wanted"):
            remedy = ", or repeat the command with the settings it was built with" if found.fields else ""
            raise CacheMismatch(
                f"{path} is of another recipe than this build{found.reason}: leave out --reuse {path}{remedy}"
                f"{found.fields}"
            )
        check_features(path, reader.features, features, f"leave out --reuse {path}")


def take_rows(
    writer: SegmentedWriter, reuse: Sequence[str | Path], wanted: Wanted, *, names: bool
) -> tuple[Reused, ...]:
    """Copy what is wanted from each cache in turn; those alone that had any of it. Names are those of the samples."""
    if not reuse or not wanted:
        return ()
    pairs = set(_pairs(wanted))
    name_of = {sample.key: sample.name for sample, _ in wanted} if names else {}
    taken = []
    for path in map(Path, reuse):
        n_rows = writer.adopt(path, pairs, names=name_of)
        log.info("reused   %s views of %s", f"{n_rows:,}", path)
        if n_rows:
            taken.append(Reused(path, n_rows, CacheReader(path, memory_map=False).manifest.provenance))
    return tuple(taken)


def reusable_rows(reuse: Sequence[str | Path], wanted: Wanted) -> list[tuple[Path, set[Pair]]]:
    """What `take_rows` would take of each; CacheDamaged, as it says, where one that has any of it does not verify."""
    missing, found = set(_pairs(wanted)), []
    for path in map(Path, reuse):
        with CacheReader(path, memory_map=False) as reader:
            there = missing & reader.pairs() if missing else set[Pair]()
            if there:
                reader.verify()
        missing -= there
        found.append((path, there))
    return found


def _pairs(wanted: Wanted) -> Iterator[Pair]:
    return ((sample.key, view) for sample, views in wanted for view in views)


def check_features(
    out: Path, stored: FeatureShapes | None, wanted: FeatureShapes, otherwise: str = "choose another -o"
) -> None:
    """SettingError where the rows that stand have other features than the wanted ones; None where none stand."""
    if stored is None or set(stored) == set(wanted):
        return
    if ("embedding" in stored) != ("embedding" in wanted):
        has, flag = ("no embeddings", "--no-embedding") if "embedding" in wanted else ("embeddings", "--embedding")
        raise SettingError(f"the rows of {out} have {has}: repeat the command with {flag}, or {otherwise}")
    raise SettingError(
        f"the rows of {out} have the features {', '.join(stored)}, this teacher's would have "
        f"{', '.join(wanted)} ({SEEN} follows from what it says that it was fitted on): {otherwise}"
    )
