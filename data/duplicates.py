"""The same bytes twice, and groups on two sides of a split: found, and refused where nobody allows them.

Compares content keys, never pixels. Run: softlabel data check DATA
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from data.errors import BadSamples, bullet_list
from data.samples import Sample
from data.splits import SPLITS

_SHOWN = 3


@dataclass(frozen=True)
class Conflict:
    """Files of the same bytes that are told apart by what is said of them."""

    names: tuple[str, ...]
    """Sorted, relative to the data folder."""
    in_labels: bool
    """Two classes of one task."""
    in_splits: bool
    in_groups: bool


@dataclass(frozen=True)
class GroupLeak:
    """A lesion or patient on two sides of a split."""

    group: str
    names: Mapping[str, tuple[str, ...]]
    """Split -> its images, sorted by name."""


def without_repeats(samples: Sequence[Sample]) -> tuple[list[Sample], int, list[Conflict]]:
    """(samples, how many were left out, conflicts): the same bytes count once in each split and class.

    An image with and without a label, or with labels of different tasks, is one image with all of them.
    """
    by_key = defaultdict[bytes, list[Sample]](list)
    for sample in samples:
        by_key[sample.key].append(sample)
    kept: list[Sample] = []
    conflicts = []
    for same in by_key.values():
        if len(same) == 1:
            kept += same
            continue
        distinct = _distinct(same)
        kept += distinct
        conflict = Conflict(
            tuple(sorted(sample.name for sample in same)),
            in_labels=not all(_agree(one.labels, other.labels) for one in distinct for other in distinct),
            in_splits=len({sample.split for sample in same}) > 1,
            in_groups=len({sample.group for sample in same if sample.group}) > 1,
        )
        if conflict.in_labels or conflict.in_splits or conflict.in_groups:
            shown = distinct if len(distinct) > 1 else same
            conflicts.append(replace(conflict, names=tuple(sorted(sample.name for sample in shown))))
    return kept, len(samples) - len(kept), sorted(conflicts, key=lambda conflict: conflict.names)


def _distinct(same: Sequence[Sample]) -> list[Sample]:
    """One sample for each split and each set of labels that no other one contains or agrees with."""
    found: list[Sample] = []
    for sample in same:
        for at, other in enumerate(found):
            if other.split == sample.split and _agree(other.labels, sample.labels):
                group = other.group or sample.group
                found[at] = replace(other, labels={**other.labels, **sample.labels}, group=group)
                break
        else:
            found.append(sample)
    return found


def _agree(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return all(other.get(task, label) == label for task, label in one.items())


def group_leaks(samples: Sequence[Sample]) -> list[GroupLeak]:
    """Every group with images in two splits."""
    names = defaultdict[str, dict[str, list[str]]](lambda: defaultdict(list))
    for sample in samples:
        if sample.group:
            names[sample.group][sample.split].append(sample.name)
    return [
        GroupLeak(group, {split: tuple(sorted(by_split[split])) for split in SPLITS if split in by_split})
        for group, by_split in sorted(names.items()) if len(by_split) > 1
    ]  # fmt: skip


def refuse_conflicts(conflicts: Sequence[Conflict]) -> None:
    """BadSamples that lists them; nothing where there is none."""
    if conflicts:
        where = "two classes or two splits" + " or two groups" * any(conflict.in_groups for conflict in conflicts)
        raise BadSamples(
            f"{len(conflicts):,} images stand in {where} with the same bytes (a leak, or a wrong label); remove one of "
            f"each, or pass --allow-duplicates:\n{bullet_list(' = '.join(conflict.names) for conflict in conflicts)}"
        )


def refuse_leaks(leaks: Sequence[GroupLeak], n_groups: int, remedy: str) -> None:
    """BadSamples that lists them with some of their images, and what to do; nothing where there is none."""
    if leaks:
        raise BadSamples(
            f"{len(leaks):,} of {n_groups:,} groups stand in two splits (a leak: what is tested was learned); {remedy}, "
            f"or pass --allow-group-leaks:\n{bullet_list(map(describe_leak, leaks))}"
        )


def describe_leak(leak: GroupLeak) -> str:
    """`HAM_1: train a.jpg, b.jpg | test c.jpg`."""
    sides = []
    for split, names in leak.names.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        sides.append(f"{split} {', '.join(names[:_SHOWN])}{more}")
    return f"{leak.group}: {' | '.join(sides)}"
