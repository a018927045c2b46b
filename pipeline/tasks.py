"""Tasks: the questions that are asked about an image. Their answers stand side by side in one row of columns.

A data set, a cache, a teacher and a student each know some. Several tasks are blocks of one last layer, as wide as all
their classes together: each block is a head of its own. Reads no file.
C classes of a task, K columns of all tasks, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data.sample_table import class_numbers
from data.samples import FOLDER_TASK, Sample

ASKED_AS = "task"
"""The field of a cache's provenance with the column that its single task was, in a table."""
UNLABELLED = -1
"""The number of the class of a sample that has no label."""


class Tasks(Mapping[str, tuple[str, ...]]):
    """Task -> class names, both in order. The columns of the first task come first."""

    def __init__(self, classes: Mapping[str, Sequence[str]]) -> None:
        self._classes = {task: tuple(names) for task, names in classes.items()}

    def __getitem__(self, task: str) -> tuple[str, ...]:
        return self._classes[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    @property
    def only(self) -> str:
        """The name of the one task there is."""
        (task,) = self._classes
        return task

    @cached_property
    def columns(self) -> dict[str, slice]:
        """Task -> its columns."""
        found, start = {}, 0
        for task, names in self._classes.items():
            found[task] = slice(start, start + len(names))
            start += len(names)
        return found

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """What the K columns are called: by their class; where there are several tasks, `task: class`."""
        return tuple(
            name if len(self) == 1 else f"{task}: {name}" for task, names in self._classes.items() for name in names
        )


def tasks_of(classes: Tasks | Sequence[str]) -> Tasks:
    """A list of classes as a single task; tasks as they are."""
    return classes if isinstance(classes, Tasks) else Tasks({FOLDER_TASK: classes})


def stored_name(task: str, tasks: Mapping[str, Sequence[str]]) -> str:
    """What a cache calls one of these tasks: a single one is `class`, whatever its column is called.

    So folders and tables of the same images share one cache.
    """
    return task if len(tasks) > 1 else FOLDER_TASK


def matching_task(known: Mapping[str, Sequence[str]], task: str, n_tasks: int) -> str | None:
    """What somebody else calls one of `n_tasks` tasks; None where they do not know it.

    By name; where both sides have a single task it is the same one, whatever its column was called.
    """
    if task in known:
        return task
    return next(iter(known)) if len(known) == 1 and n_tasks == 1 else None


def label_numbers(samples: Sequence[Sample], tasks: Tasks) -> NDArray[np.int64]:
    """Class of each sample in each task, int64 [N, T]; UNLABELLED where it has none, or one that is not asked about."""
    columns = [class_numbers(samples, task, names) for task, names in tasks.items()]
    return columns[0][:, None] if len(columns) == 1 else np.stack(columns, axis=1)


def label_bytes(sample: Sample, tasks: Mapping[str, Sequence[str]]) -> bytes:
    """What a digest over samples takes of its labels; of a single task its class alone."""
    if len(tasks) == 1:
        return "".join(sample.labels.values()).encode()
    return repr(sorted(sample.labels.items())).encode()
