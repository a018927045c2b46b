"""Match samples with the rows of a cache: by content key and class name, never by position or path.

Reports everything that does not fit at once, before anything is trained. Reads keys and names only, no row.
N samples, T tasks.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cache import CacheReader
from cache.errors import CacheDamaged, CacheMismatch
from cache.union import CacheUnion
from data.errors import bullet_list
from data.sample_table import classes_present, keys_of, take
from data.samples import FOLDER_TASK, Sample
from pipeline.bad_images import undecodable
from pipeline.repair.remedies import advice_other_classes, derived_by, in_one_file, merged_name
from pipeline.scores.table import imported_from
from pipeline.targets import StoredTask, TeacherTargets, read_by_training, view_policy
from pipeline.tasks import ASKED_AS, Tasks, label_numbers, matching_task

log = logging.getLogger(__name__)

_N_NAMED = 20
"""Classes that a message lists: a teacher may know thousands."""

_OTHERS = "if other caches have them, `softlabel train` takes those, too"

Groups = Mapping[str, Sequence[Sample]]


def join(
    reader: CacheReader,
    groups: Groups,
    words: Sequence[str],
    tasks: Mapping[str, Sequence[str]],
    *,
    clean: Collection[str] = (),
    skip_bad_images: bool = False,
    narrow: bool = False,
    answered: bool = True,
    verified: bool = False,
) -> dict[str, TeacherTargets]:
    """Every sample of every group (such as train and val) with its place in the cache.

    `words` are DATA and its options, as on the command line, for messages.
    `tasks` are those that are asked about, each with its classes; the targets have all classes that the cache knows in
    them, or with `narrow` these alone, in this order. Without `answered` the logits are not asked for, and the cache
    may know other tasks and classes.
    The groups in `clean` need a clean view of each sample. CacheMismatch lists all that does not fit, with what to run.
    Files that cannot be decoded are left out with a notice, if `skip_bad_images` or if the build left them out, too.
    `verified` also compares all that training reads with its checksums, which brings it into memory; CacheDamaged where
    nothing else is wrong.
    """
    groups, index_N = _without_bad(reader, groups, skip_bad_images)
    is_known = any((index >= 0).any() for index in index_N.values())
    names = {task: matching_task(reader.tasks, task, len(tasks)) for task in tasks}
    problems = [
        *_views(reader),
        *(_tasks(reader, groups, words, tasks, names, narrow, is_known) if answered else ()),
        *_images(reader, groups, index_N, words, clean),
    ]
    _refuse(reader, words, problems, _damage(reader, {name for name in names.values() if name}) if verified else None)
    _tell_of_another_column(reader, tasks)
    if answered and not narrow:
        tasks = {task: reader.tasks[str(name)] for task, name in names.items()}
    asked, stored = Tasks(tasks), _stored(reader, tasks, names)
    return {
        name: TeacherTargets(reader, samples, index_N[name], label_numbers(samples, asked), asked, stored)
        for name, samples in groups.items()
    }


def _refuse(reader: CacheReader, words: Sequence[str], problems: list[str], damage: CacheDamaged | None) -> None:
    """CacheMismatch with all that is wrong, or the damage where that is all; nothing where there is nothing."""
    if damage and not problems:
        raise damage
    problems = [*problems, *([str(damage)] if damage else [])]
    if len(problems) == 1:
        raise CacheMismatch(problems[0])
    if problems:
        raise CacheMismatch(f"{reader.path} and {words[0]} do not fit together:\n{bullet_list(problems)}")


def _stored(
    reader: CacheReader, tasks: Mapping[str, Sequence[str]], names: Mapping[str, str | None]
) -> dict[str, StoredTask]:
    """Where the logits of each task are, of which the cache knows all classes."""
    found = {}
    for task, name in names.items():
        column = {known: number for number, known in enumerate(reader.tasks.get(str(name), ()))}
        if set(tasks[task]) <= set(column):
            found[task] = StoredTask(str(name), tuple(column[known] for known in tasks[task]))
    return found


def _tell_of_another_column(reader: CacheReader, tasks: Mapping[str, Sequence[str]]) -> None:
    """Two columns of yes and no have the same classes, and ask for other things: nobody but the user can tell."""
    (task, *others), column = tasks, reader.manifest.provenance.get(ASKED_AS)
    if not others and isinstance(column, str) and task not in (column, FOLDER_TASK):
        log.info("the cache was built for the column %s; here %s is taken for the same task", column, task)


def _without_bad(
    reader: CacheReader, groups: Groups, skip_bad_images: bool
) -> tuple[Groups, dict[str, NDArray[np.int64]]]:
    """The samples that need not be left out, and the place of each in the cache, -1 where it has none."""
    kept, index_N, n_bad = dict[str, Sequence[Sample]](), dict[str, NDArray[np.int64]](), 0
    for name, samples in groups.items():
        kept[name], index_N[name] = samples, reader.find(keys_of(samples))
        bad = undecodable(reader, samples, index_N[name], skip=skip_bad_images)
        if len(bad):
            left = np.delete(np.arange(len(samples)), bad)
            kept[name], index_N[name] = take(samples, left), index_N[name][left]
        n_bad += len(bad)
    if n_bad:
        log.info("%s images cannot be decoded and are left out", f"{n_bad:,}")
    return kept, index_N


def _views(reader: CacheReader) -> Iterator[str]:
    try:
        view_policy(reader)
    except CacheMismatch as error:
        yield str(error)


def _damage(reader: CacheReader, tasks: Collection[str]) -> CacheDamaged | None:
    try:
        reader.verify_objects(read_by_training(reader, tasks))
    except CacheDamaged as error:
        return error
    return None


def _tasks(
    reader: CacheReader, groups: Groups, words: Sequence[str], tasks: Mapping[str, Sequence[str]],
    names: Mapping[str, str | None], narrow: bool, is_known: bool,
) -> Iterator[str]:  # fmt: skip
    """What the cache lacks of tasks and classes."""
    # A probe needs rows of these images; where there are none, that is said, and what to do then.
    advice = f": {advice_other_classes(reader, words)}" if is_known else ""
    if unknown := [task for task in tasks if names[task] is None]:
        there_are = f"it has {_short(list(reader.tasks))}{advice}"
        yield f"{reader.path} does not know the task{'s' * (len(unknown) > 1)} {_short(unknown)}; {there_are}"
    for task, name in names.items():
        if name is None:
            continue
        classes = reader.tasks[name]
        there = set[str]().union(*(classes_present(samples, task) for samples in groups.values()))
        if lacking := (there | set(tasks[task] if narrow else ())) - set(classes):
            of_task = f" of {task}" if len(tasks) > 1 else ""
            yield (
                f"{reader.path} does not know the classes {_short(sorted(lacking))}{of_task}; it was built for "
                f"{_short(classes)}{advice}"
            )


def _short(names: Sequence[str]) -> str:
    rest = [f"and {len(names) - _N_NAMED:,} more"] if len(names) > _N_NAMED else []
    return ", ".join([*names[:_N_NAMED], *rest])


def _images(
    reader: CacheReader, groups: Groups, index_N: Mapping[str, NDArray[np.int64]], words: Sequence[str],
    clean: Collection[str],
) -> Iterator[str]:  # fmt: skip
    n_samples = sum(map(len, groups.values()))
    missing = {name: np.flatnonzero(index_N[name] < 0) for name in groups}
    unclean = {
        name: np.flatnonzero((reader.row(index_N[name], 0) < 0) & (index_N[name] >= 0)) for name in groups
        if name in clean
    }  # fmt: skip
    n_missing, n_unclean = (sum(map(len, found.values())) for found in (missing, unclean))
    if n_missing and n_missing == n_samples:
        yield (
            f"{reader.path} knows none of the {n_samples:,} images of {words[0]}: this is another data set, or your "
            f"copy of the images has other bytes (re-encoded or resized?)"
        )
    elif n_missing:
        yield (
            f"{reader.path} lacks {n_missing:,} of {n_samples:,} images (first: {_first(groups, missing).name}): "
            f"{_extending(reader, words)}"
        )
    if n_unclean:
        yield (
            f"{reader.path} lacks the clean view of {n_unclean:,} images (first: {_first(groups, unclean).name}): "
            f"{_extending(reader, words)}"
        )


def _first(groups: Groups, found: Mapping[str, NDArray[np.int64]]) -> Sample:
    return next(groups[name][int(at[0])] for name, at in found.items() if len(at))


def _extending(reader: CacheReader, words: Sequence[str]) -> str:
    """How the cache gets the rows that it lacks."""
    scores = imported_from(reader.manifest)
    build = ["softlabel", "cache", *(["build"] if scores is None else ["import", scores]), *words, "-o"]
    if head := derived_by(reader.manifest.identity):
        return (
            f"it was made by `softlabel cache {head}` from another cache: extend that one by "
            f"`{shlex.join([*build, 'PARENT.h5'])}` with the settings it was built with, then {head} it again"
        )
    if scores is None:
        return _building(reader, build)
    file, merging = in_one_file(reader, str(reader.path))
    commands = [*merging, f"{shlex.join(build)} {file}"]
    return (
        f"run `{'`, then `'.join(commands)}` with the settings it was built with, which adds only these, if "
        f"{scores} has their scores; a longer table makes another cache, under another -o"
    )


def _building(reader: CacheReader, build: Sequence[str]) -> str:
    """The same where a teacher is asked."""
    from pipeline.rebuilding import rebuilding  # with the teachers' code, which training does without

    more = rebuilding(reader)
    if len(reader.paths) > 1:
        # Rows with other features than those of the new file are none of its.
        files = (reader.without_embeddings if isinstance(reader, CacheUnion) else ()) or reader.paths
        reuse = [word for path in files for word in ("--reuse", str(path))]
        out = merged_name()
        return (
            f"run `{shlex.join([*build, out, *reuse, *more.options])}`{more.user_adds}, which computes only these and "
            f"takes the others from them, and name {out} instead; {_OTHERS}"
        )
    command = shlex.join([*build, str(reader.path), *more.options])
    return f"run `{command}`{more.user_adds}, which adds only these; {_OTHERS}"
