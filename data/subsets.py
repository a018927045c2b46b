"""Parts of a data set: some classes, or some images of each. Acts on samples that have their splits already.

Run: softlabel train DATA t.h5 -o RUN --only mel,nv --max-per-class 100
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from data.errors import BadOption, did_you_mean
from data.samples import Sample


def subset(
    samples: Sequence[Sample], wanted: Mapping[str, Set[str]], max_per_class: int | None
) -> tuple[list[Sample], list[str]]:
    """(samples, notices): those of the `wanted` classes, of these the `max_per_class` with the smallest keys a split.

    A sample without a label in a task of `wanted` is not kept: nobody knows whether it is of these classes.
    A task of which one class is left is no task any more, if there is another one. Of several tasks, `max_per_class`
    counts each combination of classes; samples without labels count as one.
    """
    before = classes_of(samples)
    kept = list(samples)
    for task, names in wanted.items():
        kept = [sample for sample in kept if sample.labels.get(task) in names]
    if max_per_class is not None:
        kept = _first_of_each(kept, max_per_class)
    left = classes_of(kept)
    single = [task for task in before if wanted and len(left.get(task, ())) < 2]
    if not single or len(single) == len(before):
        return kept, []
    kept = [
        replace(sample, labels={task: label for task, label in sample.labels.items() if task not in single})
        for sample in kept
    ]
    return kept, [f"--only leaves one class of {', '.join(single)}: no task any more"]


def classes_of(samples: Sequence[Sample]) -> dict[str, tuple[str, ...]]:
    """Task -> sorted class names of the labels there are."""
    found = defaultdict[str, set[str]](set)
    for sample in samples:
        for task, label in sample.labels.items():
            found[task].add(label)
    return {task: tuple(sorted(found[task])) for task in sorted(found)}


def _first_of_each(samples: Sequence[Sample], n_each: int) -> list[Sample]:
    """The `n_each` samples with the smallest keys of each split and combination of classes."""
    counts = Counter[tuple[object, ...]]()
    chosen = []
    for sample in sorted(samples, key=lambda sample: (sample.key, sample.name)):
        of_class = (sample.split, *sorted(sample.labels.items()))
        counts[of_class] += 1
        if counts[of_class] <= n_each:
            chosen.append(sample)
    return chosen


def wanted_classes(samples: Sequence[Sample], only: Sequence[str]) -> dict[str, set[str]]:
    """Task -> classes to keep, of `CLASS` or `TASK=CLASS`; BadOption names every one that there is not."""
    classes = classes_of(samples)
    tasks = ", ".join(classes)
    wanted = defaultdict[str, set[str]](set)
    problems = []
    for entry in only:
        task, has_task, name = entry.partition("=")
        if not has_task or task not in classes:
            if len(classes) > 1:
                hint = f"no task is called '{task}'{did_you_mean(task, classes)}" if has_task else ""
                problems.append(f"{hint or f'of which task is {entry!r}? Write TASK={entry}'} ({tasks})")
                continue
            task, name = next(iter(classes), ""), entry
        known = classes.get(task, ())
        if name not in known:
            listed = f" ({', '.join(known)})" if len(known) <= 20 else ""
            problems.append(f"no class is called '{name}'{did_you_mean(name, known)}{listed}")
        wanted[task].add(name)
    if problems:
        raise BadOption(f"--only: {'; '.join(problems)}")
    return dict(wanted)
