"""Match samples with the rows of a cache: by content key and class name, never by position or path.

Reports everything that does not fit at once, before anything is trained. Reads keys and names only, no row.
N samples.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cache import CacheReader
from cache.errors import CacheDamaged, CacheMismatch
from data.errors import bullet_list
from data.samples import FOLDER_TASK, Sample
from pipeline.bad_images import decodable
from pipeline.repair.remedies import advice_other_classes, derived_by
from pipeline.scores.table import imported_from
from pipeline.targets import TeacherTargets, read_by_training, view_policy

log = logging.getLogger(__name__)

_N_NAMED = 20
"""Classes that a message lists: a teacher may know thousands."""

Groups = Mapping[str, Sequence[Sample]]


def join(
    reader: CacheReader,
    groups: Groups,
    data: str,
    *,
    clean: Collection[str] = (),
    skip_bad_images: bool = False,
    classes: Sequence[str] | None = None,
    verified: bool = False,
) -> dict[str, TeacherTargets]:
    """Every sample of every group (such as train and val) with its place in the cache.

    The groups in `clean` need a clean view of each sample. CacheMismatch lists all that does not fit, with what to run.
    With `classes` the labels are numbered by those, and the cache may know others (for whoever needs no logits).
    Files that cannot be decoded are left out with a notice, if `skip_bad_images` or if the build left them out, too.
    `verified` also compares all that training reads with its checksums, which brings it into memory; CacheDamaged where
    nothing else is wrong.
    """
    groups = _without_bad(reader, groups, skip_bad_images)
    index_N = {name: reader.find([sample.key for sample in samples]) for name, samples in groups.items()}
    is_known = any((index >= 0).any() for index in index_N.values())
    problems = [
        *_views(reader),
        *(_classes(reader, groups, data, is_known) if classes is None else ()),
        *_images(reader, groups, index_N, data, clean),
    ]
    damage = _damage(reader) if verified else None
    if damage and not problems:
        raise damage
    problems += [str(damage)] if damage else []
    if len(problems) == 1:
        raise CacheMismatch(problems[0])
    if problems:
        raise CacheMismatch(f"{reader.path} and {data} do not fit together:\n{bullet_list(problems)}")
    column = {name: number for number, name in enumerate(reader.tasks[FOLDER_TASK] if classes is None else classes)}
    labels_N = {
        name: np.array([column[s.labels[FOLDER_TASK]] for s in samples], np.int64) for name, samples in groups.items()
    }
    return {name: TeacherTargets(reader, groups[name], index_N[name], labels_N[name]) for name in groups}


def _without_bad(reader: CacheReader, groups: Groups, skip_bad_images: bool) -> Groups:
    kept = {name: decodable(reader, samples, skip=skip_bad_images) for name, samples in groups.items()}
    if n_bad := sum(map(len, groups.values())) - sum(map(len, kept.values())):
        log.info("%s images cannot be decoded and are left out", f"{n_bad:,}")
    return kept


def _views(reader: CacheReader) -> Iterator[str]:
    try:
        view_policy(reader)
    except CacheMismatch as error:
        yield str(error)


def _damage(reader: CacheReader) -> CacheDamaged | None:
    try:
        reader.verify_objects(read_by_training(reader))
    except CacheDamaged as error:
        return error
    return None


def _classes(reader: CacheReader, groups: Groups, data: str, is_known: bool) -> Iterator[str]:
    if FOLDER_TASK not in reader.tasks:
        yield f"{reader.path} has the tasks {', '.join(reader.tasks)}; expected '{FOLDER_TASK}'"
        return
    classes = reader.tasks[FOLDER_TASK]
    unknown = {sample.labels[FOLDER_TASK] for samples in groups.values() for sample in samples} - set(classes)
    if unknown:
        # A probe needs rows of these images; where there are none, that is said, and what to do then.
        advice = f": {advice_other_classes(reader, data)}" if is_known else ""
        built_for = f"it was built for {_short(classes)}"
        yield f"{reader.path} does not know the classes {_short(sorted(unknown))}; {built_for}{advice}"


def _short(names: Sequence[str]) -> str:
    rest = [f"and {len(names) - _N_NAMED:,} more"] if len(names) > _N_NAMED else []
    return ", ".join([*names[:_N_NAMED], *rest])


def _images(
    reader: CacheReader, groups: Groups, index_N: Mapping[str, NDArray[np.int64]], data: str, clean: Collection[str]
) -> Iterator[str]:
    n_samples = sum(map(len, groups.values()))
    missing = [groups[name][at] for name in groups for at in np.flatnonzero(index_N[name] < 0).tolist()]
    unclean = [
        groups[name][at] for name in groups if name in clean
        for at in np.flatnonzero((reader.row(index_N[name], 0) < 0) & (index_N[name] >= 0)).tolist()
    ]  # fmt: skip
    remedy = _extending(reader, data)
    if missing and len(missing) == n_samples:
        yield (
            f"{reader.path} knows none of the {n_samples:,} images of {data}: this is another data set, or your copy "
            f"of the images has other bytes (re-encoded or resized?)"
        )
    elif missing:
        yield (f"{reader.path} lacks {len(missing):,} of {n_samples:,} images (first: {missing[0].name}): {remedy}")
    if unclean:
        yield (f"{reader.path} lacks the clean view of {len(unclean):,} images (first: {unclean[0].name}): {remedy}")


def _extending(reader: CacheReader, data: str) -> str:
    """How the cache gets the rows that it lacks."""
    scores = imported_from(reader.manifest)
    build = ["softlabel", "cache", *(["build"] if scores is None else ["import", scores]), data, "-o"]
    if head := derived_by(reader.manifest.identity):
        return (
            f"it was made by `softlabel cache {head}` from another cache: extend that one by "
            f"`{shlex.join([*build, 'PARENT.h5'])}` with the settings it was built with, then {head} it again"
        )
    remedy = f"run `{shlex.join([*build, str(reader.path)])}` with the settings it was built with"
    if scores is not None:
        remedy += f", if {scores} has their scores; a longer table makes another cache, under another -o"
    return remedy
