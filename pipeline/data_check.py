"""What is to be said of a data set before a cache is built of it: what must be mended, and everything as JSON.

Looks into no image (`data.inspection` does). The page for people is `pipeline.data_page`.
Run: softlabel data check DATA --json
"""

from __future__ import annotations

import shlex
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data.errors import BadSamples
from data.inspection import Inspection, LookAlike
from data.samples import Sample
from data.scan import Survey, check_classes, remedy_of_leaks
from data.splits import SPLITS


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One kind of things that are wrong."""

    what: str
    remedy: str
    flag: str | None
    """With which it would be accepted; None where nothing helps but mending it."""
    is_allowed: bool = False
    """Whether that flag was given."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Groups:
    """Lesions, patients."""

    n: int
    median: float
    """Images of a group."""
    largest: int
    n_without: int
    """Images that belong to none."""


def problems(found: Inspection) -> list[Problem]:
    """All that is wrong; those that are not allowed end `cache build`, but the near-duplicates, which it never sees."""
    return [*_of_files(found), *_of_bytes(found), *_of_groups(found), *_of_classes(found), *_of_look_alikes(found)]


def _of_files(found: Inspection) -> Iterator[Problem]:
    failed = [file for file in found.bad if file.is_system]
    bad = [file for file in found.bad if not file.is_system]
    if failed:
        yield Problem(
            what=f"{counted(len(failed), 'file')} could not be read, which says nothing about the images",
            remedy="repeat the command when the disk or network answers, or remove them", flag=None,
        )  # fmt: skip
    if bad and len(bad) == found.n_files:
        yield Problem(what=f"none of {found.n_files:,} images can be read", remedy="is this the right DATA?", flag=None)
    elif bad:
        n_missing = sum(file.is_missing for file in bad)
        yield Problem(
            what=counted(len(bad), "bad file"),
            remedy="complete the images (--image-dir)" if n_missing else "remove or replace them",
            flag="--skip-bad-images", is_allowed=found.options.skip_bad_images,
        )  # fmt: skip


def _of_bytes(found: Inspection) -> Iterator[Problem]:
    if conflicts := found.survey.conflicts:
        kinds = {
            "classes": any(one.in_labels for one in conflicts), "splits": any(one.in_splits for one in conflicts),
            "groups": any(one.in_groups for one in conflicts),
        }  # fmt: skip
        where = " or ".join(f"two {kind}" for kind, is_there in kinds.items() if is_there)
        yield Problem(
            what=f"{counted(len(conflicts), 'image')} with the same bytes in {where}", remedy="remove one of each",
            flag="--allow-duplicates", is_allowed=found.options.allow_duplicates,
        )  # fmt: skip


def _of_groups(found: Inspection) -> Iterator[Problem]:
    if leaks := found.survey.leaks:
        yield Problem(
            what=f"{counted(len(leaks), 'group')} in two splits", remedy=remedy_of_leaks(found.survey),
            flag="--allow-group-leaks", is_allowed=found.options.allow_group_leaks,
        )  # fmt: skip


def _of_classes(found: Inspection) -> Iterator[Problem]:
    if found.survey.samples:
        try:
            check_classes(found.survey)
        except BadSamples as error:
            yield Problem(what=str(error), remedy="add images, or labels", flag=None)


def _of_look_alikes(found: Inspection) -> Iterator[Problem]:
    if found.look_alikes and (pairs := found.look_alikes.across_splits):
        yield Problem(
            what=f"{counted(len(pairs), 'pair')} of near-duplicates in two splits", remedy="remove one of each",
            flag="--allow-duplicates", is_allowed=found.options.allow_duplicates,
        )  # fmt: skip


def verdict(found: Inspection) -> str:
    """One line: whether a cache can be built of these words, or what must be mended and how."""
    left = [problem for problem in problems(found) if not problem.is_allowed]
    if not left:
        n_images = len(found.survey.samples) - sum(file.key is not None for file in found.bad)
        return (
            f"OK: `softlabel cache build {shlex.join(found.survey.words)} -o t.h5` takes {counted(n_images, 'image')}"
        )
    told = (f"{one.what} ({one.remedy}{f', or pass {one.flag}' if one.flag else ''})" for one in left)
    return f"NOT OK: {'; '.join(told)}"


def is_ok(found: Inspection) -> bool:
    """Whether nothing is wrong but what is allowed."""
    return all(problem.is_allowed for problem in problems(found))


def counts_of(found: Survey, task: str) -> dict[str, Counter[str]]:
    """Class -> split -> images, in the order of the classes."""
    counts = {name: Counter[str]() for name in found.classes[task]}
    for sample in found.samples:
        if task in sample.labels:
            counts[sample.labels[task]][sample.split] += 1
    return counts


def unlabelled(found: Survey, task: str) -> Counter[str]:
    """Split -> images without a label in this task."""
    return Counter(sample.split for sample in found.samples if task not in sample.labels)


def split_counts(samples: Sequence[Sample]) -> dict[str, int]:
    """Split -> images, of the splits there are."""
    counts = Counter(sample.split for sample in samples)
    return {split: counts[split] for split in SPLITS if split in counts}


def groups_of(found: Survey) -> Groups | None:
    """None where no image belongs to a group."""
    sizes = Counter(sample.group for sample in found.samples)
    n_without = sizes.pop("", 0)
    if not sizes:
        return None
    return Groups(len(sizes), statistics.median(sizes.values()), max(sizes.values()), n_without)


def origin_of_splits(found: Inspection) -> str:
    """Who says which image is in which split."""
    options, path = found.options, found.survey.split_file
    if path is None:
        if not any(sample.labels for sample in found.survey.samples):
            return "no image has a label: all are train"
        return f"the column {options.split_column}" if options.split_column else "the folders"
    are_whole = groups_of(found.survey) is not None and not found.survey.leaks
    how = "drawn by class" + ", groups whole" * are_whole
    if options.folds is not None:
        which = (
            f"fold {options.fold} of {options.folds} is test" if options.fold else f"{options.folds} folds, all train"
        )
        how = f"{which}; {how}"
    if path.exists():
        return f"{how}: {path}"
    return f"{how}, seed {options.split_seed or 0}; not saved: the first command that uses it will write {path}"


def to_dict(found: Inspection) -> dict[str, Any]:
    """Everything, in full, as plain values."""
    data, formats, groups, near = found.survey, found.formats, groups_of(found.survey), found.look_alikes
    return {
        "data": list(data.words),
        "root": str(data.root),
        "images": len(data.samples),
        "splits": split_counts(data.samples),
        "splits_from": origin_of_splits(found),
        "tasks": {
            task: {"classes": counts_of(data, task), "unlabelled": unlabelled(data, task)} for task in data.classes
        },
        "groups": groups and asdict(groups),
        "formats": formats.formats,
        "modes": formats.modes,
        "sizes_px": [{"width": w, "height": h, "images": n} for (w, h), n in sorted(formats.sizes_px.items())],
        "turned_by_exif": formats.n_turned,
        "several_frames": formats.several_frames,
        "bad_files": [{"path": file.path, "reason": file.reason} for file in found.bad],
        "repeats": data.repeats,
        "conflicts": [asdict(conflict) for conflict in data.conflicts],
        "group_leaks": [{"group": leak.group, "images": leak.names} for leak in data.leaks],
        "near_duplicates": near and {
            **asdict(near.config), "one_colour": near.n_flat,
            "across_splits": [_pair(pair) for pair in near.across_splits],
            "across_labels": [_pair(pair) for pair in near.across_labels],
        },
        "notices": list(data.notices),
        "problems": [problem.to_dict() for problem in problems(found)],
        "ok": is_ok(found),
        "verdict": verdict(found),
    }  # fmt: skip


def _pair(pair: LookAlike) -> Mapping[str, Any]:
    sides = [{"image": one.name, "split": one.split, "labels": one.labels} for one in (pair.one, pair.other)]
    return {"images": sides, "hamming": pair.hamming, "correlation": pair.correlation, "turned": pair.is_turned}


def counted(n: int, thing: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"
