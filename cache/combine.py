"""Merge sealed files of one recipe into one sealed file, row by row, first source first.

Never recomputes, repairs or averages a row. Beside the small tables memory is bounded: a few sources are open at a
time, and some megabytes of rows are put together from them and written at once.
Run: `softlabel cache merge A.h5 B.h5 -o OUT.h5`

Legend: R rows = (sample, view), S sources.
"""

import logging
import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from cache import durable
from cache.errors import CacheMismatch
from cache.fill import NewFile
from cache.layout import Spec, is_big
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.survey import (
    MERGED_FROM,
    Plan,
    Survey,
    check_agreement,
    check_features,
    check_recipes,
    merged_provenance,
    must_agree,
    planned,
)
from cache.workspace import SEGMENT_SUFFIX, Workspace, visible

log = logging.getLogger(__name__)

_MAX_OPEN = 64
"""Sources at a time; some systems allow a process no more than 256 files."""


def merge(sources: Sequence[str | Path], out: str | Path) -> CacheReader:
    """Merge caches into the new file `out` and open it; a folder among the sources stands for the caches in it.

    `out` exists whole and verified, or not at all; the sources stay as they are. Raises CacheBusy while another process
    makes the same `out`, and CacheMismatch for other recipes, and for rows in two sources that differ beyond the
    precision's tolerance.
    """
    workspace, paths = Workspace(Path(out)), _files(map(Path, sources))
    out = workspace.out
    if not paths:
        raise CacheMismatch(f"nothing to merge into {out}: name one cache or more")
    if out.exists():
        raise CacheMismatch(f"{out} exists already: choose another -o, or remove it first")
    with workspace:
        merge_locked(paths, out, workspace.folder, {MERGED_FROM: len(paths)}, replace=False)
    return CacheReader(out)


def merge_locked(
    paths: Sequence[Path], out: Path, temp_folder: Path, provenance: Mapping[str, Any], *, replace: bool
) -> None:
    """The same for the holder of the lock of `out`, which with `replace` exists and is one of the sources.

    `temp_folder` (same disk) takes the unfinished file, `provenance` replaces fields of the sources'.
    """
    surveys = [_surveyed(path) for path in paths]
    check_recipes(surveys)
    check_features(surveys)
    plan = planned(surveys)
    manifest = Manifest(surveys[0].manifest.identity, {**merged_provenance(surveys, plan), **provenance})
    replaced = next(survey.seal for survey in surveys if survey.path == out) if replace else None
    _tell_of_lost_names(surveys, out, temp_folder)
    temp = durable.temp_name(out, temp_folder)
    try:
        with NewFile(temp, plan.dims(surveys[0].dims, manifest).specs()) as new:
            _put_small(new, plan)
            for start in range(0, len(surveys), _MAX_OPEN):
                _put_sources(new, surveys, plan, range(start, min(start + _MAX_OPEN, len(surveys))))
            new.seal(manifest)
        with CacheReader(temp, memory_map=False) as written:
            written.verify()
        _publish(temp, out, replaced)
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)
    log.debug("%s: %d rows of %d samples from %d files", out, len(plan.view), len(plan.key), len(paths))


def _tell_of_lost_names(surveys: Sequence[Survey], out: Path, temp_folder: Path) -> None:
    """Names are for all samples or for none: say which file has none where another one has."""
    nameless = [survey.path for survey in surveys if survey.names is None]
    if not 0 < len(nameless) < len(surveys):
        return
    kept = [path for path in nameless if path.parent != temp_folder]  # a part of a build is gone after it
    if not kept:
        log.warning("%s stores no names of images any more: the rows that were added have none", out)
        return
    words = shlex.join(["softlabel", "cache", "build", "DATA", "-o", "OTHER.h5", "--reuse", str(kept[0])])
    none = "it stores none of the new ones" if kept[0] == out else f"{out} stores none"
    log.warning("%s has no names of images, so %s; a cache with names: %s", kept[0], none, words)


def _files(sources: Iterable[Path]) -> list[Path]:
    """Each file once, in the order of the sources; in a folder by name."""
    found: dict[Path, Path] = {}
    for source in sources:
        inside = visible(source, SEGMENT_SUFFIX) if source.is_dir() else [source]
        if not inside:
            raise CacheMismatch(f"{source} is a folder without caches: expected files named *{SEGMENT_SUFFIX} in it")
        for path in inside:
            if path.resolve() in found:
                log.info("notice   %s is named twice, and counts once", path)
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _put_small(new: NewFile, plan: Plan) -> None:
    new.put("samples/key", plan.key)
    new.put("samples/first_row", plan.first_row)
    new.put("rows/view", plan.view)
    if plan.names is not None:
        new.put("samples/name", plan.names)


def _surveyed(path: Path) -> Survey:
    with CacheReader(path, memory_map=False) as reader:
        return Survey.of(path, reader)


def _put_sources(new: NewFile, surveys: Sequence[Survey], plan: Plan, numbers: range) -> None:
    """Put the rows of some sources; compare those that an earlier source has, too, with what that one has said."""
    with ExitStack() as stack:
        readers = {}
        for number in numbers:
            survey = surveys[number]
            readers[number] = reader = stack.enter_context(CacheReader(survey.path, memory_map=False))
            if reader.seal != survey.seal:
                raise CacheMismatch(f"{survey.path} changed during the merge: run it again")
            reader.verify()
        for name, (spec, _) in new.extents.items():
            if is_big(name):
                for stretch, members in _stretches(spec, plan, numbers):
                    _put_stretch(new, name, stretch, [(surveys[at], readers[at], *_part(plan, at)) for at in members])


def _stretches(spec: Spec, plan: Plan, numbers: range) -> Iterator[tuple[slice, list[int]]]:
    """The stretches of an object that rows of these sources stand in, each with the numbers of those sources."""
    stretches, members = list(spec.stretches()), defaultdict[int, list[int]](list)
    n_entries = stretches[0].stop
    for number in numbers:
        targets = plan.target_rows[number]
        for at in range(int(targets[0]) // n_entries, int(targets[-1]) // n_entries + 1):
            members[at].append(number)
    return ((stretches[at], members[at]) for at in sorted(members))


def _part(plan: Plan, number: int) -> tuple[np.ndarray, np.ndarray]:
    return plan.target_rows[number], plan.is_first[number]


def _put_stretch(
    new: NewFile, name: str, stretch: slice, members: Sequence[tuple[Survey, CacheReader, np.ndarray, np.ndarray]]
) -> None:
    """Put what some sources, in their order, have of a stretch: in one write, where they have all of it.

    Keys are sorted in every source, so that each has its rows of a stretch side by side, whichever samples it has.
    """
    dtype, shape = new.extents[name].spec
    values = np.empty((stretch.stop - stretch.start, *shape[1:]), dtype)
    is_there = np.zeros(len(values), bool)
    for survey, reader, targets, is_first in members:
        # Of their own type: numpy would convert all of them for each search otherwise.
        start, stop = np.searchsorted(targets, np.array([stretch.start, stretch.stop], targets.dtype)).tolist()
        if start == stop:
            continue
        found, first = reader.read_object(name, slice(start, stop)), is_first[start:stop]
        at, has_others = targets[start:stop] - stretch.start, not first.all()
        own = (at[first], found[first]) if has_others else (at, found)
        _whole_entries(values)[own[0]] = _whole_entries(own[1])
        is_there[own[0]] = True
        if must_agree(name) and has_others:
            again = at[~first]
            kept, elsewhere = values[again], ~is_there[again]  # those of sources that are closed by now
            if elsewhere.any():
                kept[elsewhere] = new.gather(name, again[elsewhere] + stretch.start)
            check_agreement(name, found[~first], kept, survey)
    if is_there.all():
        new.put(name, values, stretch.start)
    else:
        new.scatter(name, values[is_there], np.flatnonzero(is_there) + stretch.start)


def _whole_entries(values: np.ndarray) -> np.ndarray:
    """The entries of a contiguous array as one value each: numpy copies them three times as fast as rows of numbers."""
    entry_bytes = values.itemsize * math.prod(values.shape[1:])
    return values.reshape(-1).view(np.dtype((np.void, entry_bytes)))


def _publish(temp: Path, out: Path, replaced: bytes | None) -> None:
    """Give the file its name: a new one, or that of the cache with the seal `replaced`, and of no other."""
    with durable.disk_errors(out, 4096):
        if replaced is not None:
            if CacheReader(out, memory_map=False).seal != replaced:
                raise CacheMismatch(
                    f"{out} was replaced during the merge and was left alone: run the same command again"
                )
            durable.publish_replace(temp, out)
        elif not durable.publish_new(temp, out):
            raise CacheMismatch(f"{out} appeared during the merge and was left alone: choose another -o")
