"""The part of a report about one task: scores beside the teacher's, classes, confusion matrix, what is wrong.

Makes plain values for the page's template; computes no score of its own. N samples, C classes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import printable
from pipeline.metrics.bootstrap import Interval
from pipeline.metrics.evaluation import Answers, SplitEvaluation
from pipeline.metrics.full import HEADLINE, probabilities
from pipeline.report.content import shown_samples
from pipeline.report.figures import MAX_COUNTED, confusion_svg, reliability_svg
from pipeline.report.svg import natural_width_px

N_BARS = 5
"""Classes that a sample shows: the true one, and the likeliest."""
_KEY_LETTERS = 16
"""Of a content key's 32; enough to find the image, also among millions."""


@dataclass(frozen=True)
class Section:
    """One task of the page."""

    title: str
    """The name of the task where there are several, else empty."""
    ids: str
    """What sets the ids of its figures apart from those of other tasks."""
    classes: tuple[str, ...]
    scores: SplitEvaluation

    def parts(self, pictures: Mapping[bytes, bytes], markup: Any) -> dict[str, Any]:
        """What the template shows; `pictures` has JPEGs by content key, `markup` marks text as HTML."""
        split, student, teacher = self.scores, self.scores.student, self.scores.teacher
        told = None if teacher is None else teacher.metrics.calibration
        confusion = confusion_svg(student.metrics.confusion, self.classes, f"{self.ids}confusion")
        width_px = natural_width_px(confusion)
        return {
            "task": printable(self.title),
            "name": split.answers.split,
            "n_images": f"{student.metrics.n_samples:,}",
            "source": split.answers.source,
            "has_teacher": teacher is not None,
            "scores": _score_rows(split),
            "remark": _remark(split),
            "per_class": _class_rows(split),
            "is_narrow": len(self.classes) <= MAX_COUNTED // 2,
            "confusion": markup(confusion),
            "confusion_px": round(0.85 * width_px),
            "confusion_max_px": round(1.25 * width_px),
            "reliability": markup(reliability_svg(student.metrics.calibration, told, f"{self.ids}reliability")),
            "samples": self._sample_groups(split.answers, pictures),
        }

    def _sample_groups(self, answers: Answers, pictures: Mapping[bytes, bytes]) -> list[dict[str, Any]]:
        student_NC = probabilities(answers.student_NC)
        teacher_NC = None if answers.teacher_NC is None else probabilities(answers.teacher_NC)
        names = [printable(name) for name in self.classes]
        return [
            {
                "title": group.title,
                "remark": group.remark,
                "samples": [
                    _sample(names, answers, n, student_NC[n], None if teacher_NC is None else teacher_NC[n], pictures)
                    for n in group.numbers
                ],
            }
            for group in shown_samples(answers)
        ]


def _score_rows(split: SplitEvaluation) -> list[dict[str, str]]:
    student, teacher = split.student, split.teacher
    mine = student.metrics.headline()
    theirs = teacher.metrics.headline() if teacher else {}
    rows = []
    for name, title in HEADLINE.items():
        retained = split.retention_percent.get(name)
        rows.append({
            "title": title,
            "student": share(mine[name]), "student_interval": _interval(student.intervals.get(name)),
            "teacher": share(theirs.get(name)),
            "teacher_interval": _interval(teacher.intervals.get(name)) if teacher else "",
            "retained": "" if retained is None else f"{retained:.0f} %",
        })  # fmt: skip
    return rows


def _remark(split: SplitEvaluation) -> str:
    said = [f"Always the largest class: accuracy {split.student.metrics.majority_share:.3f}."]
    if split.agreement:
        said.append(
            f"Student and teacher agree on {split.agreement.top1:.3f} of the images; "
            f"KL(teacher || student) {split.agreement.kl_nats:.3f} nats."
        )
    if split.n_learned:
        said.append(f"The student learned from {split.n_learned:,} of these images: its scores are too good.")
    if split.n_teacher_seen:
        said.append(f"The teacher was fitted on {split.n_teacher_seen:,} of them: its scores are too good.")
    said.append(f"Intervals: {split.n_resamples:,} bootstrap resamples, drawn by {split.unit}.")
    return " ".join(said)


def _class_rows(split: SplitEvaluation) -> list[dict[str, Any]]:
    rows = []
    for name, scores in split.student.metrics.per_class.items():
        told = split.teacher.metrics.per_class[name] if split.teacher else {}
        cells = [
            {
                "student": share(scores[column]), "student_percent": _percent(scores[column]),
                "teacher": share(told.get(column)) if split.teacher else "",
                "teacher_percent": _percent(told.get(column)),
            }
            for column in ("precision", "recall", "f1")
        ]  # fmt: skip
        rows.append({"name": printable(name), "support": f"{scores['support']:,.0f}", "cells": cells})
    return rows


def _sample(
    names: Sequence[str], answers: Answers, number: int, student_C: NDArray[np.float64],
    teacher_C: NDArray[np.float64] | None, pictures: Mapping[bytes, bytes],
) -> dict[str, Any]:  # fmt: skip
    true = int(answers.labels_N[number])
    likely_C = student_C if teacher_C is None else np.maximum(student_C, teacher_C)
    order = [int(c) for c in np.argsort(-likely_C, kind="stable") if c != true]
    said = [("student", names[int(student_C.argmax())])]
    if teacher_C is not None:
        said.append(("teacher", names[int(teacher_C.argmax())]))
    picture = pictures.get(answers.keys[number])
    return {
        "true": names[true],
        "said": said,
        "key": answers.keys[number].hex()[:_KEY_LETTERS],
        "picture": "" if picture is None else f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}",
        "bars": [
            {
                "name": names[c], "student": _percent(student_C[c]),
                "teacher": None if teacher_C is None else _percent(teacher_C[c]),
            }
            for c in [true, *order][:N_BARS]
        ],
    }  # fmt: skip


def share(value: float | None) -> str:
    """A score as text; a dash for none."""
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * float(value), 1)
