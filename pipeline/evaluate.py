"""Measure a finished student on one split: metrics, confusion matrix, agreement with its teacher.

Never trains, loads no teacher: the teacher's answers come from the cache, where it holds that split.
Run: softlabel evaluate RUN DATA --split test
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import CacheError, CacheReader
from cache.errors import CacheMismatch, printable
from data.loaders import StudentLoader, ViewItem, default_workers, is_decodable
from data.options import ScanOptions
from data.samples import FOLDER_TASK, Sample, scan_folder
from data.views import CLEAN_ROW
from pipeline.errors import RunError
from pipeline.inference import Student, load_student
from pipeline.joining import join
from pipeline.metrics import Agreement, Metrics, agreement, classification_metrics
from pipeline.process import resolve_device

log = logging.getLogger(__name__)

_BATCH_SIZE = 128


@dataclass(frozen=True)
class Evaluation:
    """A student on one split, and its teacher on the same images where the cache holds them."""

    split: str
    student: Metrics
    teacher: Metrics | None
    agreement: Agreement | None
    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {**asdict(self), "classes": list(self.classes)}

    def to_table(self) -> str:
        """For people: totals, per-class scores, confusion matrix."""
        lines = [f"{self.split}: {self.student.n_samples:,} images"]
        lines += [_total_line("student", self.student)]
        if self.teacher and self.agreement:
            lines += [_total_line("teacher", self.teacher)]
            lines += [f"agreement  top-1 {self.agreement.top1:.3f}  KL {self.agreement.kl_nats:.3f} nats"]
        width = max(len(name) for name in (*self.classes, "class"))
        lines += ["", f"{'class':{width}}  precision  recall     f1  images"]
        for name, score in self.student.per_class.items():
            shares = (score["precision"], score["recall"], score["f1"])
            numbers = "  ".join(
                f"{'-' if x is None else f'{x:.3f}':>{w}}" for x, w in zip(shares, (9, 6, 5), strict=True)
            )
            lines.append(f"{name:{width}}  {numbers}  {score['support']:6.0f}")
        columns = "".join(f"{i:>6}" for i in range(len(self.classes)))
        lines += ["", "confusion: rows true, columns predicted", f"{'':{width + 4}}{columns}"]
        for i, (name, row) in enumerate(zip(self.classes, self.student.confusion, strict=True)):
            lines.append(f"{i:>3} {name:{width}}" + "".join(f"{count:6}" for count in row))
        return "\n".join(map(printable, lines))


def _total_line(who: str, metrics: Metrics) -> str:
    return (
        f"{who:9}  accuracy {metrics.accuracy:.3f} (majority share {metrics.majority_share:.3f})"
        f"  balanced {metrics.balanced_accuracy:.3f}  macro F1 {metrics.macro_f1:.3f}"
    )


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    cache: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    scan: ScanOptions = ScanOptions(),
) -> Evaluation:
    """Evaluate a run folder or an exported file on the clean view of every image of a split.

    `cache` is where the teacher's answers stand; None takes the one the run was trained with, if it is still there.
    """
    student = load_student(model, resolve_device(device))
    samples = scan_folder(data, scan).of_split(split)
    if scan.skip_bad_images:
        samples = [sample for sample in samples if is_decodable(sample)]
    labels = _labels(samples, student)
    told = _teacher_logits(student, samples, cache, str(data))
    workers = default_workers(student.device) if workers is None else workers
    logits = clean_logits(student, samples, workers)
    classes = student.card.classes
    return Evaluation(
        split=split,
        student=classification_metrics(logits, labels, classes),
        teacher=None if told is None else classification_metrics(told, labels, classes),
        agreement=None if told is None else agreement(logits, told),
        classes=classes,
    )


def clean_logits(student: Student, samples: list[Sample], workers: int) -> NDArray[np.float32]:
    """Raw logits of the clean view of each sample, float32 [N, C]."""
    items = [ViewItem(sample, CLEAN_ROW, i) for i, sample in enumerate(samples)]
    batches = [items[start : start + _BATCH_SIZE] for start in range(0, len(items), _BATCH_SIZE)]
    loader = StudentLoader(student.card.size_px, student.card.geometry, workers)
    return student.logits_of(pixels for pixels, _ in loader(batches))


def _labels(samples: list[Sample], student: Student) -> NDArray[np.int64]:
    column = {name: i for i, name in enumerate(student.card.classes)}
    unknown = sorted({sample.labels[FOLDER_TASK] for sample in samples} - set(column))
    if unknown:
        raise RunError(f"the student does not know the classes {', '.join(unknown)}; it knows {', '.join(column)}")
    return np.array([column[sample.labels[FOLDER_TASK]] for sample in samples], np.int64)


def _teacher_logits(
    student: Student, samples: list[Sample], cache: Path | None, data: str
) -> NDArray[np.float32] | None:
    """The teacher's logits in the student's class order, float32 [N, C]; None, with a notice, where there are none."""
    path = cache or (student.run.cache_path() if student.run else None)
    if path is None:
        return None
    try:
        reader = CacheReader(path, memory_map=False)
        if lacking := set(student.card.classes) - set(reader.tasks.get(FOLDER_TASK, ())):
            raise CacheMismatch(f"{path} does not know the student's classes {', '.join(sorted(lacking))}")
        if cache is None and reader.recipe_id != student.recipe_id:
            raise CacheMismatch(f"{path} is no longer the cache that this run was trained on")
        targets = join(reader, {"evaluated": samples}, data, clean=["evaluated"], verified=True)["evaluated"]
    except CacheError as error:
        if cache is not None:
            raise
        log.info("no agreement with the teacher: %s", error)
        return None
    order = [reader.tasks[FOLDER_TASK].index(name) for name in student.card.classes]
    return targets.teacher_logits(targets.clean_rows())[:, order]
