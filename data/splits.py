"""Splits that are made here: by class, groups whole, seeded, drawn once and remembered (`data.split_file`).

Renaming or moving images does not move them between splits; images added later join train, or their group, so that
validation and test scores stay comparable. Run: softlabel train DATA t.h5 -o RUN --group-column patient --csv t.csv
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import BadSamples
from data.split_file import read_splits, write_splits

if TYPE_CHECKING:
    from data.samples import Sample

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
VAL_FRACTION, TEST_FRACTION = 0.15, 0.15
ALWAYS_TRAIN = "0"
"""The fold of images that are never test."""


def load_or_make(
    label_of: Mapping[bytes, str],
    name_of: Mapping[bytes, str],
    path: Path,
    seed: int = 0,
    *,
    group_of: Mapping[bytes, str] | None = None,
    save: bool = True,
) -> dict[bytes, str]:
    """Content key -> split, from the CSV at `path`; makes it where there is none (by class, seeded).

    `name_of` has every image, `label_of` those with a label: the others go to train, or where their group is.
    """
    groups = _shared(group_of or {})
    if path.exists():
        return _with_new(read_splits(path, "split", SPLITS), name_of, groups, "train", path)
    rare = [f"{label} ({count})" for label, count in sorted(Counter(label_of.values()).items()) if count < 3]
    if rare:
        raise BadSamples(f"cannot split three ways: too few images of {', '.join(rare)}; at least 3 are needed")
    test = _subset(label_of, groups, TEST_FRACTION, seed)
    rest = {key: label for key, label in label_of.items() if key not in test}
    val = _subset(rest, groups, VAL_FRACTION / (1 - TEST_FRACTION), seed)
    assigned = {key: "test" if key in test else "val" if key in val else "train" for key in label_of}
    assigned |= _beside(name_of, assigned, groups, "train")
    if save:
        write_splits(assigned, name_of, path, "split")
    by = "by class, groups whole," if groups else "by class,"
    counts = Counter(assigned.values())
    how = f"split once {by} saved in" if save else f"would be split {by[:-1]} and saved in"
    log.info("%s %s: %s", how, path, ", ".join(f"{counts[s]:,} {s}" for s in SPLITS))
    _tell_lacking(assigned, label_of, SPLITS)
    return assigned


def load_or_make_folds(
    label_of: Mapping[bytes, str],
    name_of: Mapping[bytes, str],
    path: Path,
    n_folds: int,
    seed: int = 0,
    *,
    group_of: Mapping[bytes, str] | None = None,
    save: bool = True,
) -> dict[bytes, int]:
    """Content key -> fold from 1, or 0 for an image that is never test; as `load_or_make` remembers splits."""
    groups = _shared(group_of or {})
    known = tuple(str(fold) for fold in range(n_folds + 1))
    if path.exists():
        kept = _with_new(read_splits(path, "fold", known), name_of, groups, ALWAYS_TRAIN, path)
        return {key: int(fold) for key, fold in kept.items()}
    few = [f"{label} ({count})" for label, count in sorted(Counter(label_of.values()).items()) if count < 2]
    if few or len(label_of) < n_folds:
        raise BadSamples(
            f"{len(label_of)} images cannot fill {n_folds} folds{': too few images of ' * bool(few)}{', '.join(few)}"
        )
    assigned = {key: str(1 + fold) for fold, keys in enumerate(_folds(label_of, groups, n_folds, seed)) for key in keys}
    assigned |= _beside(name_of, assigned, groups, ALWAYS_TRAIN)
    if save:
        write_splits(assigned, name_of, path, "fold")
    counts = Counter(assigned.values())
    how = "cut once into folds, saved in" if save else "would be cut into folds and saved in"
    log.info("%s %s: %s images", how, path, ", ".join(f"{counts[fold]:,}" for fold in known[1:]))
    _tell_lacking(assigned, label_of, known[1:])
    return {key: int(fold) for key, fold in assigned.items()}


def hold_out(samples: Sequence[Sample], fraction: float, seed: int) -> set[bytes]:
    """The keys of a seeded `fraction` of the samples: by class, no group torn.

    Unlabelled samples are only in it with their group: nothing may learn from them either.
    """
    label_of = joint_labels(samples, max(2, round(1 / fraction)))
    groups = _shared({sample.key: sample.group for sample in samples if sample.group})
    chosen = _subset(label_of, groups, fraction, seed)
    met = {groups[key] for key in chosen if key in groups}
    return chosen | {key for key, group in groups.items() if group in met}


def joint_labels(samples: Iterable[Sample], n_min: int) -> dict[bytes, str]:
    """Content key -> what it is drawn by, of each sample with a label: its class.

    Of several tasks it is the combination of classes; those that fewer than `n_min` samples have are one.
    """
    labels_of = {sample.key: tuple(sorted(sample.labels.items())) for sample in samples if sample.labels}
    if len({task for labels in labels_of.values() for task, _ in labels}) <= 1:
        return {key: label for key, ((_, label),) in labels_of.items()}
    counts = Counter(labels_of.values())
    rare = {labels for labels, count in counts.items() if count < n_min}
    usual, n_usual = counts.most_common(1)[0]
    pooled = "other" if sum(counts[labels] for labels in rare) >= n_min or n_usual < n_min else _joined(usual)
    return {key: pooled if labels in rare else _joined(labels) for key, labels in labels_of.items()}


def _joined(labels: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{task} {label}" for task, label in labels)


def stratified_subset(label_of: Mapping[bytes, str], fraction: float, seed: int) -> set[bytes]:
    """The keys of a seeded random `fraction` of the samples with the class shares of the whole.

    Depends on keys and labels only, not on their order. Raises BadSamples where a class is too small.
    """
    from sklearn.model_selection import train_test_split

    counts = Counter(label_of.values())
    rare = [f"{label} ({count})" for label, count in sorted(counts.items()) if count < 2]
    if rare:
        raise BadSamples(f"cannot split by class: too few images of {', '.join(rare)}; at least 2 are needed")
    keys = sorted(label_of)
    wanted = max(round(fraction * len(keys)), len(counts))
    if len(keys) - wanted < len(counts):
        raise BadSamples(f"cannot split {len(keys)} images of {len(counts)} classes by class: add images")
    _, subset = train_test_split(
        keys, test_size=wanted, random_state=seed % 2**32, stratify=[label_of[key] for key in keys]
    )
    return set(subset)


def _shared(group_of: Mapping[bytes, str]) -> dict[bytes, str]:
    """The groups of more than one image: any other image is drawn by itself."""
    counts = Counter(group_of.values())
    return {key: group for key, group in group_of.items() if group and counts[group] > 1}


def _subset(label_of: Mapping[bytes, str], groups: Mapping[bytes, str], fraction: float, seed: int) -> set[bytes]:
    """`stratified_subset` where no group is to be torn; else the folds next to `fraction` that cover classes best."""
    if not any(key in groups for key in label_of):
        return stratified_subset(label_of, fraction, seed)
    # The fewest folds of which some come within a hundredth of the fraction: 1 of 7 for 0.15, 1 of 6 for what is left.
    cuts = ((max(round(fraction * folds), 1), folds) for folds in range(2, 101))
    n_taken, n_folds = next(cut for cut in cuts if abs(cut[0] / cut[1] - fraction) < 0.01 or cut[1] == 100)
    folds = _folds(label_of, groups, n_folds, seed)
    classes, n_wanted = set(label_of.values()), len(label_of) / n_folds

    def worth(fold: set[bytes]) -> tuple[int, int, float]:
        left = {label for key, label in label_of.items() if key not in fold}
        inside = {label_of[key] for key in fold}
        return len(classes - left), len(classes - inside), abs(len(fold) - n_wanted)

    found = set().union(*sorted(folds, key=worth)[:n_taken])
    if not found or len(found) == len(label_of):
        raise BadSamples(
            f"cannot split {len(label_of):,} images of {len(_units(label_of, groups)):,} groups without tearing one: "
            "add groups"
        )
    return found


def _units(label_of: Mapping[bytes, str], groups: Mapping[bytes, str]) -> set[str]:
    return {groups.get(key, key.hex()) for key in label_of}


def _folds(label_of: Mapping[bytes, str], groups: Mapping[bytes, str], n_folds: int, seed: int) -> list[set[bytes]]:
    """The keys of each fold: by class, no group torn. Depends on keys, labels and groups, not on their order."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    keys = sorted(label_of)
    labels, units = [label_of[key] for key in keys], [groups.get(key, key.hex()) for key in keys]
    if len(set(units)) < n_folds:
        raise BadSamples(f"{len(set(units))} groups cannot fill {n_folds} parts: take fewer, or add groups")
    tears: Callable[..., StratifiedKFold] = StratifiedGroupKFold if len(set(units)) < len(keys) else StratifiedKFold
    splitter = tears(n_folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # "The least populated class has less members than n_splits": said by `_tell_lacking`, if it matters.
        warnings.simplefilter("ignore", UserWarning)
        try:
            return [{keys[at] for at in test} for _, test in splitter.split(keys, labels, units)]
        except ValueError as error:  # every class is smaller than the number of folds
            raise BadSamples(f"{len(keys)} images cannot be cut into {n_folds} parts by class: {error}") from error


def _beside(
    name_of: Mapping[bytes, str], assigned: Mapping[bytes, str], groups: Mapping[bytes, str], otherwise: str
) -> dict[bytes, str]:
    """Where the images go that were not drawn: with their group, or where all such go."""
    place_of_group = {groups[key]: place for key, place in assigned.items() if key in groups}
    return {key: place_of_group.get(groups.get(key, ""), otherwise) for key in name_of if key not in assigned}


def _with_new(
    assigned: dict[bytes, str], name_of: Mapping[bytes, str], groups: Mapping[bytes, str], otherwise: str, path: Path
) -> dict[bytes, str]:
    new = _beside(name_of, assigned, groups, otherwise)
    if new:
        log.info("%s images are not in %s: they join train%s", f"{len(new):,}", path, ", or their group" * bool(groups))
    return {**new, **assigned}


def _tell_lacking(assigned: Mapping[bytes, str], label_of: Mapping[bytes, str], places: Sequence[str]) -> None:
    """Say which place has no image of a class; only groups, or very few images, can cause that."""
    there = defaultdict[str, set[str]](set)
    for key, label in label_of.items():
        there[assigned[key]].add(label)
    for place in places:
        if lacking := sorted(set(label_of.values()) - there[place]):
            log.warning("%s has no image of %s: too few groups or images", place, ", ".join(lacking))
