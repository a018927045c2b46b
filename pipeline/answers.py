"""What a finished student and its teacher say of the images of each split. Computes no scores, loads no teacher.

Run: softlabel evaluate RUN DATA
N samples, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cache import CacheError, CacheReader
from cache.errors import CacheMismatch
from data.errors import DataNotFound
from data.loaders import StudentLoader, ViewItem, default_workers
from data.options import ScanOptions
from data.samples import FOLDER_TASK, Sample, SampleSet
from data.splits import SPLITS
from data.views import CLEAN_ROW
from pipeline.bad_images import decodable, opened
from pipeline.errors import RunError
from pipeline.inference import Student
from pipeline.joining import join
from pipeline.metrics.evaluation import Answers
from pipeline.tasks import matching_task

log = logging.getLogger(__name__)

_BATCH_SIZE = 128


class Answering:
    """One student, the images it is asked about, and the cache that has its teacher's answers."""

    def __init__(
        self, student: Student, images: SampleSet, cache: Path | None, workers: int | None, scan: ScanOptions
    ) -> None:
        self._student, self._root, self._skip_bad_images = student, images.root, scan.skip_bad_images
        self.classes, self.every_sample = student.card.classes, images.samples
        self._workers = default_workers(student.device) if workers is None else workers
        self.learned = student.run.learned_keys() if student.run else None
        self._parts, self._decodable = parts_of(images, self.learned), dict[str, list[Sample]]()
        self._cache = opened(cache_of(student, cache))
        self._teacher = TeacherAnswers(student, cache, images.words)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are, in the order train, val, test."""
        return tuple(self._parts)

    def samples(self, split: str) -> list[Sample]:
        """The images of a split; DataNotFound names the splits there are."""
        if split not in self._parts:
            there = ", ".join(self._parts)
            raise DataNotFound(f"{self._root} has no images in split '{split}'; it has: {there}")
        samples, _ = self._parts[split]
        if split not in self._decodable:
            self._decodable[split] = decodable(self._cache, samples, skip=self._skip_bad_images)
            if n_bad := len(samples) - len(self._decodable[split]):
                log.info("%s images of %s cannot be decoded and are left out", f"{n_bad:,}", split)
        return self._decodable[split]

    def labels(self, split: str) -> NDArray[np.int64]:
        """Class of each image of a split, int64 [N]; RunError for classes that the student does not know."""
        column = {name: i for i, name in enumerate(self.classes)}
        samples = self.samples(split)
        unknown = sorted({sample.labels[FOLDER_TASK] for sample in samples} - set(column))
        if unknown:
            raise RunError(f"the student does not know the classes {', '.join(unknown)}; it knows {', '.join(column)}")
        return np.array([column[sample.labels[FOLDER_TASK]] for sample in samples], np.int64)

    def answers(self, split: str) -> Answers:
        """What both say of a split's clean views."""
        samples, labels_N = self.samples(split), self.labels(split)
        told = self._teacher.of(samples, split)
        return Answers(
            split=split,
            source=self._parts[split][1],
            names=tuple(sample.name for sample in samples),
            keys=tuple(sample.key for sample in samples),
            labels_N=labels_N,
            student_NC=clean_logits(self._student, samples, self._workers),
            teacher_NC=None if told is None else told[0],
            learned_N=None if self.learned is None else np.array([sample.key in self.learned for sample in samples]),
            teacher_seen_N=None if told is None else told[1],
        )


def cache_of(student: Student, cache: Path | None) -> Path | None:
    """The cache that was named, else where that of the student's run was."""
    return cache or (student.run.cache_path() if student.run else None)


def clean_logits(student: Student, samples: Sequence[Sample], workers: int) -> NDArray[np.float32]:
    """Raw logits of the clean view of each sample, float32 [N, C]."""
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
        path = cache_of(student, cache)
        if path is None:
            return
        try:
            reader = CacheReader(path, memory_map=False)
            self._check_known(reader)
            if cache is None and reader.recipe_id != student.recipe_id:
                raise CacheMismatch(f"{path} is no longer the cache that this run was trained on")
            self._reader = reader
        except CacheError as error:
            self._give_up("", error)

    def of(self, samples: Sequence[Sample], split: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """(raw logits in the student's class order, float32 [N, C]; whether it was fitted on each, bool [N])."""
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
