"""Find, hash, label and split the images of a data set. Decodes none (`data.decode` does).

`survey` says all that is the matter with one; `scan_data` refuses what nobody can work with. N samples.
Run: softlabel cache build DATA -o t.h5
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.duplicates import Conflict, GroupLeak, group_leaks, refuse_conflicts, refuse_leaks, without_repeats
from data.errors import BadFile, BadImage, BadOption, BadSamples
from data.files import check_bad_files, hash_files, listed, notice_of_names
from data.options import ScanOptions, flag_of
from data.samples import FOLDER_TASK, Sample, SampleSet
from data.sources.folders import in_folders
from data.sources.resolve import Source, resolve
from data.sources.rows import in_table
from data.splits import SPLITS, joint_labels, load_or_make, load_or_make_folds
from data.subsets import classes_of, subset, wanted_classes

log = logging.getLogger(__name__)

_ONE_IN_TEST = 7
"""Of so many images one is tested: a combination of labels with fewer is drawn together with other rare ones."""


@dataclass(frozen=True)
class Survey:
    """What a data set holds, and all that is the matter with it; nothing has been refused."""

    root: Path
    """The folder of the images, or around them."""
    words: tuple[str, ...]
    """DATA and its options, as words of the command line."""
    samples: tuple[Sample, ...]
    """Sorted by split, key and name; the same bytes once in each split and class."""
    classes: Mapping[str, tuple[str, ...]]
    """Task -> sorted class names."""
    repeats: int
    """Files left out because another one of their class and split has the same bytes."""
    conflicts: tuple[Conflict, ...]
    leaks: tuple[GroupLeak, ...]
    bad: tuple[BadFile, ...]
    """Files that are missing, empty or cannot be read; nothing has been decoded."""
    notices: tuple[str, ...]
    split_file: Path | None
    """Where the split stands that was made here; None where the data set says it."""


@dataclass(frozen=True)
class _Gathered:
    """Samples before they are split."""

    source: Source
    samples: Sequence[Sample]
    repeats: int
    conflicts: Sequence[Conflict]
    bad: Sequence[BadFile]
    notices: Sequence[str]


def scan_data(root: str | Path, options: ScanOptions = ScanOptions()) -> SampleSet:
    """Find, hash and label every image of DATA: a folder, a table, a data set file or a public data set.

    Raises DataNotFound, UnreadableImage (files that cannot be read, all listed), BadImage (missing or empty ones),
    BadOption, or BadSamples (duplicates, groups on two sides, tables that do not fit: all listed).
    """
    gathered = _gather(root, options)
    n_files = len(gathered.samples) + gathered.repeats + len(gathered.bad)
    check_bad_files(gathered.bad, n_files, options)
    if not gathered.samples:
        raise BadImage(f"none of {n_files:,} images can be read: is this the right folder?\n{listed(gathered.bad)}")
    if not gathered.source.options.allow_duplicates:
        refuse_conflicts(gathered.conflicts)
    found = _complete(gathered, (str(root), *options.words()))
    for notice in found.notices:
        log.info("%s", notice)
    if not gathered.source.options.allow_group_leaks:
        refuse_leaks(found.leaks, len({sample.group for sample in found.samples} - {""}), remedy_of_leaks(found))
    check_classes(found)
    narrowed = bool(gathered.source.options.only)
    return SampleSet(found.root, found.samples, found.classes, found.bad, found.words, narrowed)


def survey(root: str | Path, options: ScanOptions = ScanOptions()) -> Survey:
    """All that can be said of DATA without decoding an image; raises only where no samples can be made of it."""
    return _complete(_gather(root, options), (str(root), *options.words()))


def _gather(data: str | Path, options: ScanOptions) -> _Gathered:
    source = resolve(data, options)
    table = source.options.csv
    listing = in_folders(source.root) if table is None else in_table(source.root, table, source.options)
    keys, unread = hash_files([one.path for one in listing.found], options.memo)
    bad = [*listing.bad, *unread]
    samples = [
        Sample(key, one.path, one.name, one.split, one.labels, one.group)
        for key, one in zip(keys, listing.found, strict=True) if key is not None
    ]  # fmt: skip
    kept, repeats, conflicts = without_repeats(samples)
    odd_names = notice_of_names(sample.name for sample in samples)
    notices = [*listing.notices, *[odd_names] * bool(odd_names)]
    if repeats:
        notices.append(f"{repeats:,} images repeat another one of their class byte for byte: each counts once")
    return _Gathered(source, kept, repeats, conflicts, sorted(bad, key=lambda file: file.path), notices)


def _complete(gathered: _Gathered, words: tuple[str, ...]) -> Survey:
    """Split, compare groups, and only then take the subset, so that it never changes who is in test."""
    source = gathered.source
    wanted = wanted_classes(gathered.samples, source.options.only)  # a misspelt one is told before anything is saved
    samples, split_file = _split(gathered.samples, source)
    leaks = group_leaks(samples)
    samples, notices = subset(samples, wanted, source.options.max_per_class)
    samples.sort(key=lambda sample: (SPLITS.index(sample.split), sample.key, sample.name))
    classes = classes_of(samples)
    notices = [*notices, *_spelt_alike(classes)]
    order = [*source.options.label_columns, *classes]
    return Survey(
        root=source.root, words=words, samples=tuple(samples),
        classes={task: classes[task] for task in sorted(classes, key=order.index)}, repeats=gathered.repeats,
        conflicts=tuple(gathered.conflicts), leaks=tuple(leaks), bad=tuple(gathered.bad),
        notices=(*gathered.notices, *notices), split_file=split_file,
    )  # fmt: skip


def _spelt_alike(classes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What to say of classes that nobody would tell apart on purpose."""
    for task, names in classes.items():
        spelt = defaultdict[str, list[str]](list)
        for name in names:
            spelt[name.casefold()].append(name)
        if alike := [" and ".join(each) for each in spelt.values() if len(each) > 1]:
            yield f"classes of {task} that differ in capitals alone: {', '.join(alike)}"


def _split(samples: Sequence[Sample], source: Source) -> tuple[list[Sample], Path | None]:
    """The samples with their splits, and the file that these stand in if the data set does not say them."""
    options = source.options
    own = sorted({sample.split for sample in samples} - {""}, key=SPLITS.index)
    if samples and all(sample.split for sample in samples):
        for name in ("folds", "split_seed"):
            if getattr(options, name) is not None:
                raise BadOption(
                    f"{source.root} has splits of its own ({', '.join(own)}): {flag_of(name)} is for a data set without"
                )
        return list(samples), None
    label_of = joint_labels(samples, _ONE_IN_TEST)
    if not label_of:
        return [replace(sample, split="train") for sample in samples], None
    path = split_path(source)
    name_of = {sample.key: sample.name for sample in samples}
    group_of = {sample.key: sample.group for sample in samples if sample.group}
    seed = options.split_seed or 0
    if options.folds is None:
        split_of = load_or_make(label_of, name_of, path, seed, group_of=group_of, save=options.remember_split)
    else:
        fold_of = load_or_make_folds(
            label_of, name_of, path, options.folds, seed, group_of=group_of, save=options.remember_split
        )
        split_of = {key: "test" if fold == options.fold else "train" for key, fold in fold_of.items()}
    return [replace(sample, split=split_of[sample.key]) for sample in samples], path


def split_path(source: Source) -> Path:
    """Where the split of a data set stands that says none: beside its images or its table, a file for each seed."""
    options = source.options
    if options.split_file is not None:
        return options.split_file
    name = "splits" if options.folds is None else f"folds-{options.folds}"
    name += f"-seed-{options.split_seed}" if options.split_seed else ""
    if options.csv is not None:
        return options.csv.with_name(f"{options.csv.stem}.{name}.csv")
    return source.root / f"{name}.csv"


def remedy_of_leaks(found: Survey) -> str:
    """What to do about groups in two splits."""
    if found.split_file is None:
        return "put all images of a group into one split"
    return (
        f"{found.split_file} splits them, and was made without these groups: delete it to split anew (then other "
        "images are test, and what was trained has seen some), name another --split-file"
    )


def check_classes(found: Survey) -> None:
    """BadSamples where there is nothing to tell apart."""
    if not found.classes:
        raise BadSamples(f"{found.root} has no image with a label; a classifier needs at least two classes")
    for task, classes in found.classes.items():
        if len(classes) < 2:
            of_task = "" if task == FOLDER_TASK else f" in {task}"
            raise BadSamples(
                f"{found.root} has images of one class only{of_task} ({classes[0]}); a classifier needs at least two"
            )
