"""Images that cannot be decoded: found before the teacher starts, told all at once, remembered in the cache by key.

Never writes. Used by everything that makes a cache from images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from cache import CacheReader, SegmentedWriter
from cache.manifest import SKIPPED
from data.checks import undecodable
from data.errors import BadImage, UnreadableImage, bullet_list
from data.loaders import SampleViews
from data.samples import Sample
from pipeline.wanted import Wanted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadFile:
    """A file that is no image, or that could not be read."""

    sample: Sample
    reason: str
    unreadable: bool
    """Whether the error is about reading the file, not about the image in it."""


def find_bad_files(samples: Sequence[Sample], checked: dict[str, BadFile | None] | None = None) -> list[BadFile]:
    """Decode every image once, on all cores; but those whose path is in `checked`, to which the others are added."""
    checked = {} if checked is None else checked
    new = [sample for sample in samples if sample.path not in checked]
    found = tqdm(undecodable(new), total=len(new), desc="check images", unit="image", disable=None, leave=False)
    for sample, error in found:
        is_unreadable = isinstance(error, UnreadableImage)
        checked[sample.path] = None if error is None else BadFile(sample, error.reason, is_unreadable)
    return [file for sample in samples if (file := checked[sample.path]) is not None]


def without(bad: Iterable[BadFile], wanted: Wanted) -> Wanted:
    """What is wanted of the others."""
    keys = {file.sample.key for file in bad}
    return [(sample, views) for sample, views in wanted if sample.key not in keys]


def refuse_or_tell(bad: Sequence[BadFile], n_samples: int, done: str, *, skip: bool) -> None:
    """List what is bad: as an error, or as a notice where it may be left out; `done` says what has been done so far.

    Files that could not be read are always an error: that says nothing about the images in them.
    """
    if not bad:
        return
    if unreadable := [file for file in bad if file.unreadable]:
        raise UnreadableImage(
            f"{len(unreadable):,} of {n_samples:,} images could not be read; {done}. "
            f"Repeat the same command when they can be read, or remove them:\n{_listed(unreadable)}"
        )
    found = f"{len(bad):,} of {n_samples:,} images cannot be decoded"
    if len(bad) == n_samples:
        raise BadImage(f"{found}: is this the right folder?\n{_listed(bad)}")
    if not skip:
        raise BadImage(
            f"{found}; {done}. Remove or replace them, then repeat the same command, or repeat it with "
            f"--skip-bad-images:\n{_listed(bad)}"
        )
    log.info("%s and are left out:\n%s", found, _listed(bad))


def _listed(bad: Iterable[BadFile]) -> str:
    return bullet_list(f"{file.sample.path}: {file.reason}" for file in bad)


def skipped_field(writer: SegmentedWriter, bad: Iterable[BadFile]) -> Mapping[str, Any]:
    """What the provenance says of images left out, by key and without paths: those of now and of earlier builds.

    An image that earlier builds left out and that is in the cache by now is no longer listed.
    """
    reasons = CacheReader(writer.out).manifest.skipped if writer.out.exists() else {}
    reasons |= {file.sample.key.hex(): file.reason for file in bad}
    present = {key.hex() for key, _ in writer.done}
    left_out = [{"key": key, "reason": reason} for key, reason in sorted(reasons.items()) if key not in present]
    return {SKIPPED: left_out} if reasons else {}


def good_ones(items: Iterable[SampleViews], bad: list[BadFile]) -> Iterator[SampleViews]:
    """Those that could be rendered; the others join `bad`: files that changed since they were checked."""
    for item in items:
        if item.error:
            bad.append(BadFile(item.sample, item.error, item.unreadable))
        else:
            yield item
