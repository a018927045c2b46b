"""Find, hash, label and split the images of a data set. Decodes none (`data.decode` does).

Run: softlabel cache build DATA -o t.h5
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from data.errors import BadImage, BadSamples, bullet_list
from data.files import check_bad_files, hash_files, listed, tell_of_names, tell_of_others
from data.folders import in_folders
from data.options import ScanOptions
from data.samples import FOLDER_TASK, Sample, SampleSet
from data.splits import SPLITS, load_or_make

log = logging.getLogger(__name__)


def scan_data(root: str | Path, options: ScanOptions = ScanOptions()) -> SampleSet:
    """Find, hash and label every image below `root`.

    Raises DataNotFound, UnreadableImage (a disk or network failed), BadImage (files without bytes, all listed) or
    BadSamples (duplicates, all listed).
    """
    root = Path(root)
    files, there = in_folders(root)
    keys, unread = hash_files([file.path for file in files], options.memo)
    bad = sorted([*there.bad, *unread], key=lambda file: file.path)
    check_bad_files(bad, len(files) + len(there.bad), options)
    tell_of_others(there.ignored)
    tell_of_names(file.name for file in files)
    samples = [
        Sample(key, file.path, file.name, file.split, file.labels, file.group)
        for key, file in zip(keys, files, strict=True) if key is not None
    ]  # fmt: skip
    if not samples:
        raise BadImage(f"none of {len(bad):,} images in {root} can be read: is this the right folder?\n{listed(bad)}")
    if any(not sample.split for sample in samples):
        label_of = {sample.key: sample.labels[FOLDER_TASK] for sample in samples}
        name_of = {sample.key: sample.name for sample in samples}
        path = options.split_file or root / "splits.csv"
        assigned = load_or_make(label_of, name_of, path, save=options.remember_split)
        samples = [replace(sample, split=assigned[sample.key]) for sample in samples]
    samples = _without_duplicates(samples, options.allow_duplicates)
    samples.sort(key=lambda sample: (SPLITS.index(sample.split), sample.key, sample.name))
    classes = tuple(sorted({sample.labels[FOLDER_TASK] for sample in samples}))
    if len(classes) < 2:
        raise BadSamples(f"{root} has images of one class only ({classes[0]}); a classifier needs at least two")
    return SampleSet(root, tuple(samples), {FOLDER_TASK: classes}, tuple(bad))


def _without_duplicates(samples: list[Sample], allowed: bool) -> list[Sample]:
    """The same bytes twice in one class and split count once; elsewhere they are a leak or a contradiction."""
    by_key: dict[bytes, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_key[sample.key].append(sample)
    conflicts, repeats, kept = [], 0, []
    for same in by_key.values():
        distinct = list({(sample.split, *sorted(sample.labels.items())): sample for sample in reversed(same)}.values())
        kept += distinct
        repeats += len(same) - len(distinct)
        if len(distinct) > 1:
            conflicts.append(" = ".join(sorted(sample.name for sample in distinct)))
    if conflicts and not allowed:
        raise BadSamples(
            f"{len(conflicts):,} images stand in two classes or two splits with the same bytes (a leak, or a wrong "
            f"label); remove one of each, or pass --allow-duplicates:\n{bullet_list(sorted(conflicts))}"
        )
    if repeats:
        log.info("%s images repeat another one of their class byte for byte: each counts once", f"{repeats:,}")
    return kept
