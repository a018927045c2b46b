"""What a finished student and its teacher say of the images of each split. Computes no scores, loads no teacher.

Run: softlabel evaluate RUN DATA
N samples, C classes of a task, K columns of all the student's tasks.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cache import CacheError, CacheReader, open_caches
from cache.errors import CacheMismatch
from data.errors import DataNotFound
from data.loaders import StudentLoader, default_workers
from data.options import ScanOptions, comma_list
from data.samples import Sample, SampleSet
from data.splits import SPLITS
from data.view_batches import ViewItem
from data.views import CLEAN_ROW
from pipeline.bad_images import decodable, opened
from pipeline.errors import RunError
from pipeline.inference import Student
from pipeline.joining import join
from pipeline.metrics.evaluation import Answers
from pipeline.tasks import Tasks, matching_task

log = logging.getLogger(__name__)

_BATCH_SIZE = 128


class Answering:
    """One student, the images it is asked about, and the cache that has its teacher's answers.

    Labels are called as the student calls its tasks; images without any label that it knows take no part.
    """

    def __init__(
        self, student: Student, images: SampleSet, cache: Path | None, workers: int | None, scan: ScanOptions
    ) -> None:
        every = student.card.every_task
        images = in_words_of(every, images)
        self._student, self._root, self._skip_bad_images = student, images.root, scan.skip_bad_images
        self.tasks, self.every_sample = Tasks({task: every[task] for task in images.classes}), images.samples
        self._workers = default_workers(student.device) if workers is None else workers
        self.learned = student.run.learned_keys() if student.run else None
        self._parts, self._decodable = parts_of(images, self.learned), dict[str, list[Sample]]()
        self._cache = opened(caches_of(student, cache))
        self._teacher = TeacherAnswers(student, cache, images.words)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images with labels, in the order train, val, test."""
        return tuple(split for split, (samples, _) in self._parts.items() if any(one.labels for one in samples))

    def samples(self, split: str) -> list[Sample]:
        """The images of a split that have a label; DataNotFound names the splits there are."""
        found = [sample for sample in self._all(split) if sample.labels]
        if not found:
            raise DataNotFound(f"{self._root} has no image with a label in split '{split}'{self._that_decodes}")
        return found

    def labels(self, split: str) -> dict[str, NDArray[np.int64]]:
        """Task -> class of each image of a split that has one, int64 [N]; RunError for classes nobody taught it."""
        return {task: self._labels(task, samples) for task, samples in self._labelled(split).items()}

    def answers(self, split: str) -> dict[str, Answers]:
        """Task -> what both say of the clean views of the split's images that have a label in it."""
        samples, labels, source = self.samples(split), self.labels(split), self._parts[split][1]
        student_NK = clean_logits(self._student, samples, self._workers)
        told = self._teacher.of(samples, split)
        columns, found = self._student.card.every_task.columns, {}
        for task, labels_N in labels.items():
            numbers = np.flatnonzero([task in sample.labels for sample in samples])
            labelled = [samples[number] for number in numbers.tolist()]
            found[task] = Answers(
                split=split,
                source=source,
                names=tuple(sample.name for sample in labelled),
                keys=tuple(sample.key for sample in labelled),
                labels_N=labels_N,
                student_NC=student_NK[numbers, columns[task]],
                teacher_NC=None if told is None else told[0][numbers, columns[task]],
                learned_N=None if self.learned is None else np.array([one.key in self.learned for one in labelled]),
                teacher_seen_N=None if told is None else told[1][numbers],
            )
        return found

    def notices(self, splits: Iterable[str]) -> dict[str, str]:
        """Task -> how many images of these splits have no label in it, where there are such."""
        found = {}
        for task in self.tasks:
            lacking = {
                split: f"{n_without:,} of {len(samples):,} {split}" for split in splits
                if (samples := self._all(split)) and (n_without := sum(task not in one.labels for one in samples))
            }  # fmt: skip
            if lacking:
                of_task = f" of {task}" if len(self._student.card.tasks) > 1 else ""
                found[task] = f"{', '.join(lacking.values())} images have no label{of_task} and are left out"
        return found

    @property
    def _that_decodes(self) -> str:
        return " that can be decoded" if self._skip_bad_images else ""

    def _all(self, split: str) -> list[Sample]:
        """With a label or without."""
        if split not in self._parts:
            raise DataNotFound(f"{self._root} has no images in split '{split}'; it has: {', '.join(self._parts)}")
        samples, _ = self._parts[split]
        if split not in self._decodable:
            self._decodable[split] = list(decodable(self._cache, samples, skip=self._skip_bad_images))
            if n_bad := len(samples) - len(self._decodable[split]):
                log.info("%s images of %s cannot be decoded and are left out", f"{n_bad:,}", split)
        return self._decodable[split]

    def _labelled(self, split: str) -> dict[str, list[Sample]]:
        """Tasks without a label there are absent."""
        samples = self.samples(split)
        found = {task: [sample for sample in samples if task in sample.labels] for task in self.tasks}
        return {task: labelled for task, labelled in found.items() if labelled}

    def _labels(self, task: str, samples: Sequence[Sample]) -> NDArray[np.int64]:
        column = {name: number for number, name in enumerate(self.tasks[task])}
        labels = [sample.labels[task] for sample in samples]
        if unknown := sorted(set(labels) - set(column)):
            of_task = f" of {task}" if len(self._student.card.tasks) > 1 else ""
            known = sorted(set(labels) & set(column))
            only = f"; --only {shlex.quote(comma_list(known))} asks it about those that it knows" if known else ""
            raise RunError(
                f"the student does not know the classes {', '.join(unknown)}{of_task}; it knows "
                f"{', '.join(column)}{only}"
            )
        return np.array([column[label] for label in labels], np.int64)


def said_groups(samples: Sequence[Sample]) -> dict[bytes, str] | None:
    """Content key -> the group that DATA says, an image without one by itself; None where it says none."""
    if not any(sample.group for sample in samples):
        return None
    return {sample.key: sample.group or sample.key.hex() for sample in samples}


def in_words_of(tasks: Tasks, images: SampleSet) -> SampleSet:
    """The images with the labels that a student of these tasks can be asked about, called as it calls its tasks.

    RunError where it knows none of theirs; a notice where they lack some of its own.
    """
    theirs = {task: matching_task(images.classes, task, len(tasks)) for task in tasks}
    known = {task: name for task, name in theirs.items() if name is not None}
    if not known:
        remedy = "; name the one it answers by --label-column" if len(tasks) == 1 < len(images.classes) else ""
        raise RunError(
            f"the student answers {', '.join(tasks)}, and {images.root} has labels of {', '.join(images.classes)}"
            f"{remedy}"
        )
    if lacking := [task for task in tasks if task not in known]:
        log.info("%s has no labels of %s: %s alone", images.root, ", ".join(lacking), ", ".join(known))
    samples = tuple(
        replace(one, labels={task: one.labels[name] for task, name in known.items() if name in one.labels})
        for one in images.samples
    )
    return replace(images, samples=samples, classes={task: images.classes[name] for task, name in known.items()})


def caches_of(student: Student, cache: Path | None) -> tuple[Path, ...]:
    """The cache that was named, else where that of the student's run was, or each of several; none of no run."""
    if cache is not None:
        return (cache,)
    return student.run.cache_paths() if student.run else ()


def clean_logits(student: Student, samples: Sequence[Sample], workers: int) -> NDArray[np.float32]:
    """Raw logits of the clean view of each sample, float32 [N, K]."""
    items = [ViewItem(sample, CLEAN_ROW, i) for i, sample in enumerate(samples)]
    batches = [items[start : start + _BATCH_SIZE] for start in range(0, len(items), _BATCH_SIZE)]
    loader = StudentLoader(student.card.size_px, student.card.geometry, workers)
    loaded = tqdm(loader(batches), total=len(batches), desc="evaluate", unit="batch", leave=False, disable=None)
    return student.logits_of(pixels for pixels, _ in loaded)


class TeacherAnswers:
    """What the cache of a student has of its teacher; says once why it has nothing."""

    def __init__(self, student: Student, cache: Path | None, words: Sequence[str]) -> None:
        self._tasks, self._words, self._is_asked = student.card.every_task, words, cache is not None
        self._reader: CacheReader | None = None
        paths = caches_of(student, cache)
        if not paths:
            return
        try:
            reader = open_caches(paths, memory_map=False)
            self._check_known(reader)
            if cache is None and reader.recipe_id != student.recipe_id:
                raise CacheMismatch(f"{reader.path} is no longer the cache that this run was trained on")
            self._reader = reader
        except CacheError as error:
            self._give_up("", error)

    def of(self, samples: Sequence[Sample], split: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """(raw logits in the order of the student's, float32 [N, K]; whether it was fitted on each, bool [N])."""
        if self._reader is None:
            return None
        try:
            targets = join(
                self._reader, {split: samples}, self._words, self._tasks, clean=[split], narrow=True, verified=True
            )[split]
        except CacheError as error:
            self._give_up(f" on {split}", error)
            return None
        rows = targets.clean_rows()
        return targets.teacher_logits(rows), targets.seen(rows)

    def _check_known(self, reader: CacheReader) -> None:
        for task, classes in self._tasks.items():
            name = matching_task(reader.tasks, task, len(self._tasks))
            if lacking := set(classes) - set(reader.tasks.get(str(name), ())):
                raise CacheMismatch(f"{reader.path} does not know the student's classes {', '.join(sorted(lacking))}")

    def _give_up(self, where: str, error: CacheError) -> None:
        if self._is_asked:
            raise error
        log.info("no agreement with the teacher%s: %s", where, error)


def parts_of(images: SampleSet, learned: frozenset[bytes] | None) -> dict[str, tuple[list[Sample], str]]:
    """Split -> (its samples, where they are from). Where there is no val it is what a run did not learn of train.

    That is what it held out; of a run of hard labels alone also the images whose labels it was to leave out.
    """
    parts = {split: (images.of_split(split), "") for split in images.splits}
    if learned is None or "val" in parts or "train" not in parts:
        return parts
    train, _ = parts["train"]
    held_out = [sample for sample in train if sample.key not in learned]
    if not 0 < len(held_out) < len(train):
        return parts
    parts["train"] = [sample for sample in train if sample.key in learned], "the images of train that it learned from"
    source = "the images of train that it did not learn from: its training validated on them or some of them"
    parts["val"] = held_out, source
    return {split: parts[split] for split in SPLITS if split in parts}
