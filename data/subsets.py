"""Parts of a data set: some classes, or some images of each. Acts on samples that have their splits already.

Run: softlabel train DATA t.h5 -o RUN --only mel,nv --max-per-class 100
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from data.errors import BadOption, did_you_mean
from data.samples import Sample


def subset(samples: Sequence[Sample], only: Sequence[str], max_per_class: int | None) -> list[Sample]:
    """The samples of the classes in `only`, and of these the `max_per_class` with the smallest keys in each split.

    With `only`, a sample without a label in that task is not kept: nobody knows whether it is of these classes.
    Of several tasks, `max_per_class` counts each combination of classes; samples without labels count as one.
    """
    kept = list(samples)
    for task, names in _wanted(samples, only).items():
        kept = [sample for sample in kept if sample.labels.get(task) in names]
    if max_per_class is None:
        return kept
    counts = Counter[tuple[object, ...]]()
    chosen = []
    for sample in sorted(kept, key=lambda sample: (sample.key, sample.name)):
        of_class = (sample.split, *sorted(sample.labels.items()))
        counts[of_class] += 1
        if counts[of_class] <= max_per_class:
            chosen.append(sample)
    return chosen


def _wanted(samples: Sequence[Sample], only: Sequence[str]) -> dict[str, set[str]]:
    """Task -> classes to keep; BadOption names every class and task that there is not."""
    classes = defaultdict[str, set[str]](set)
    for sample in samples:
        for task, label in sample.labels.items():
            classes[task].add(label)
    wanted = defaultdict[str, set[str]](set)
    problems = []
    for entry in only:
        task, has_task, name = entry.partition("=")
        if not has_task or task not in classes:
            if has_task and len(classes) > 1:
                problems.append(
                    f"no task is called '{task}'{did_you_mean(task, classes)} ({', '.join(sorted(classes))})"
                )
                continue
            if len(classes) > 1:
                problems.append(f"of which task is '{entry}'? Write TASK={entry} ({', '.join(sorted(classes))})")
                continue
            task, name = next(iter(classes), ""), entry
        if name not in classes[task]:
            known = f" ({', '.join(sorted(classes[task]))})" if len(classes[task]) <= 20 else ""
            problems.append(f"no class is called '{name}'{did_you_mean(name, classes[task])}{known}")
        wanted[task].add(name)
    if problems:
        raise BadOption(f"--only: {'; '.join(problems)}")
    return dict(wanted)
