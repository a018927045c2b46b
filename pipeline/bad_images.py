"""Files that are no image: found before the teacher starts, told all at once, left out again by who reads the cache.

Those that have bytes are remembered in the cache by key and reason, the others (empty, links to nothing, ...) by number
and reason. Never writes. Used by everything that makes a cache from images, or joins images with one.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cache import CacheError, CacheReader, SegmentedWriter, open_caches
from cache.manifest import SKIPPED, SKIPPED_FILES
from data.checks import Checked
from data.checks import checked as check_images
from data.errors import BadFile, BadImage, UnreadableImage, one_line
from data.files import check_bad_files, listed
from data.loaders import SampleViews
from data.options import ScanOptions
from data.reading import is_decodable
from data.sample_table import keys_of, take
from data.samples import Sample, SampleSet
from data.scan import scan_data
from pipeline.wanted import Wanted

log = logging.getLogger(__name__)


def find_bad_files(samples: Sequence[Sample], checked: dict[str, BadFile | None] | None = None) -> list[BadFile]:
    """Decode every image once, on all cores; but those whose path is in `checked`, to which the others are added.

    One notice of those that have several frames or pages.
    """
    checked = {} if checked is None else checked
    new = [sample for sample in samples if sample.path not in checked]
    found = tqdm(check_images(new), total=len(new), desc="check images", unit="image", disable=None, leave=False)
    several: list[Checked] = []
    for image in found:
        checked[image.sample.path] = image.bad
        if image.n_frames > 1:
            several.append(image)
    if several:
        first = ", ".join(one_line(image.sample.name) for image in several[:3])
        log.info("%s images have several frames or pages: of each the first is used (%s%s)",
                 f"{len(several):,}", first, ", ..." if len(several) > 3 else "")  # fmt: skip
    return [file for sample in samples if (file := checked[sample.path]) is not None]


def without(bad: Iterable[BadFile], wanted: Wanted) -> Wanted:
    """What is wanted of the others."""
    keys = {file.key for file in bad}
    return [(sample, views) for sample, views in wanted if sample.key not in keys]


def refuse_or_tell(bad: Sequence[BadFile], n_samples: int, done: str, *, skip: bool) -> None:
    """List what is bad: as an error, or as a notice where it may be left out; `done` says what has been done so far.

    Where a disk or network failed it is always an error: that says nothing about the images.
    """
    if not bad:
        return
    if failed := [file for file in bad if file.is_system]:
        raise UnreadableImage(
            f"{len(failed):,} of {n_samples:,} images could not be read; {done}. "
            f"Repeat the same command when they can be read, or remove them:\n{listed(failed)}"
        )
    n_unread = sum(file.key is None for file in bad)
    what = {0: "decoded", len(bad): "read"}.get(n_unread, "read or decoded")
    found = f"{len(bad):,} of {n_samples:,} images cannot be {what}"
    if len(bad) == n_samples:
        raise BadImage(f"{found}: is this the right folder?\n{listed(bad)}")
    if not skip:
        raise BadImage(
            f"{found}; {done}. Remove or replace them, then repeat the same command, or repeat it with "
            f"--skip-bad-images:\n{listed(bad)}"
        )
    log.info("%s and are left out:\n%s", found, listed(bad))


def skipped_field(writer: SegmentedWriter, bad: Iterable[BadFile]) -> Mapping[str, Any]:
    """What the provenance says of images left out, without paths: by key, those of now and of earlier builds; the
    number of those without bytes that this build found.

    An image that earlier builds left out and that is in the cache by now is no longer listed.
    """
    before = CacheReader(writer.out).manifest if writer.out.exists() else None
    bad = list(bad)
    reasons = before.skipped if before else {}
    reasons |= {file.key.hex(): file.reason for file in bad if file.key is not None}
    present = {key.hex() for key, _ in writer.done}
    left_out = [{"key": key, "reason": reason} for key, reason in sorted(reasons.items()) if key not in present]
    counts = Counter(file.reason for file in bad if file.key is None)
    is_counted = counts or (before and SKIPPED_FILES in before.provenance)
    return {**({SKIPPED: left_out} if reasons else {}), **({SKIPPED_FILES: dict(counts)} if is_counted else {})}


def good_ones(items: Iterable[SampleViews], bad: list[BadFile]) -> Iterator[SampleViews]:
    """Those that could be rendered; the others join `bad`: files that changed since they were checked."""
    for item in items:
        if item.error:
            bad.append(BadFile(item.sample.path, item.error, item.unreadable, item.sample.key))
        else:
            yield item


def scan_like(cache: CacheReader | None, data: str | Path, scan: ScanOptions) -> SampleSet:
    """`scan_data` for who joins images with a cache: files without bytes are left out where its build did so, too.

    They have no key: as many as the build found, for the same reasons, are taken for the same ones.
    """
    images = scan_data(data, replace(scan, collect_bad_files=True))
    left_out = cache.manifest.skipped_files if cache else {}
    counts = Counter(file.reason for file in images.bad)
    are_known = all(n <= left_out.get(reason, 0) for reason, n in counts.items())
    scan = replace(scan, skip_bad_images=scan.skip_bad_images or are_known)
    check_bad_files(images.bad, len(images.samples) + len(images.bad), scan)
    return images


def opened(caches: Sequence[Path]) -> CacheReader | None:
    """The cache for `scan_like` and `decodable` alone; None where there is none (any more)."""
    with contextlib.suppress(CacheError):
        return open_caches(caches, memory_map=False) if caches else None
    return None


def decodable(cache: CacheReader | None, samples: Sequence[Sample], *, skip: bool) -> Sequence[Sample]:
    """Those samples that need not be left out: of the ones that the cache lacks, all that are images.

    One that is no image stays, for others to complain of, unless `skip` or the cache's build left it out, too.
    """
    index_N = cache.find(keys_of(samples)) if cache else np.full(len(samples), -1)
    bad = undecodable(cache, samples, index_N, skip=skip)
    return take(samples, np.delete(np.arange(len(samples)), bad)) if len(bad) else samples


def undecodable(
    cache: CacheReader | None, samples: Sequence[Sample], index_N: NDArray[np.int64], *, skip: bool
) -> NDArray[np.int64]:
    """The numbers of the others, where `index_N` is the place of each sample in the cache, -1 where it has none."""
    left_out = cache.manifest.skipped if cache else {}
    lacking = np.flatnonzero(index_N < 0)
    if not skip and not left_out:
        return lacking[:0]
    asked = ((at, samples[at]) for at in lacking.tolist())
    return np.array(
        [at for at, one in asked if (skip or one.key.hex() in left_out) and not is_decodable(one)], np.int64
    )
