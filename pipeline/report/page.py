"""Write a report: one HTML page that needs nothing else, no network and no script. Computes no score of its own.

A pure function of its content: the same content gives the same bytes. Run: softlabel report RUN DATA
N samples, C classes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import durable
from cache.errors import printable
from pipeline.metrics.bootstrap import Interval
from pipeline.metrics.evaluation import Answers, SplitEvaluation
from pipeline.metrics.full import HEADLINE, probabilities
from pipeline.metrics.scoring import Questions, evaluate_split
from pipeline.report.content import ReportContent, shown_samples
from pipeline.report.figures import MAX_COUNTED, confusion_svg, curves, reliability_svg
from pipeline.report.svg import natural_width_px
from pipeline.training.facts import Run
from pipeline.training.verdicts import PAGE, Verdict

N_BARS = 5
"""Classes that a sample shows: the true one, and the likeliest."""
_KEY_LETTERS = 16
"""Of a content key's 32; enough to find the image, also among millions."""


def write_report(path: str | Path, content: ReportContent) -> None:
    """Write the page, atomically, over what stands there."""
    durable.write_atomic(Path(path), render_report(content).encode())


def render_report(content: ReportContent) -> str:
    """The page as HTML text."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    split = None if content.answers is None else evaluate_split(content.answers, content.classes, Questions())
    teacher_f1 = None
    if split and split.teacher and split.answers.split == "val":
        teacher_f1 = split.teacher.metrics.macro_f1
    best = Run(content.rows, content.settings, None, None).best
    drawn = curves(content.rows, content.settings, int(best["epoch"]), teacher_f1)
    return environment.get_template("page.html").render(
        name=printable(content.name),
        lead=_lead(content),
        cards=_cards(content, best, split),
        verdicts=[_verdict(one) for one in content.verdicts],
        best_epoch=int(best["epoch"]),
        n_epochs=len(content.rows),
        curves=[(title, Markup(svg)) for title, svg in drawn],
        split=None if split is None else _split(content, split, Markup),
        settings=[(title, _setting(value)) for title, value in content.settings.items() if title != "cache"],
        ids=[(title, printable(value)) for title, value in content.ids.items()],
        privacy=_privacy(content),
        times=_times(content.rows),
    )


def _lead(content: ReportContent) -> str:
    settings = content.settings
    taught = "hard labels alone" if not settings.get("teacher", True) else f"taught by {content.teacher or 'a cache'}"
    return printable(
        f"{_setting(settings.get('student', 'a student'))} at {settings.get('student_size_px', '?')} px, "
        f"{len(content.classes)} classes, {taught}"
    )


def _cards(content: ReportContent, best: Mapping[str, Any], split: SplitEvaluation | None) -> list[dict[str, str]]:
    found = [
        ("Validation macro F1", _share(best["val_macro_f1"]), f"best epoch {best['epoch']:g} of {len(content.rows)}"),
        ("Validation balanced accuracy", _share(best["val_balanced_accuracy"]),
         f"accuracy {_share(best['val_accuracy'])}"),
    ]  # fmt: skip
    if split and split.teacher and split.agreement:
        retained = split.retention_percent["macro_f1"]
        found.append((
            f"Retention on {split.answers.split}", "-" if retained is None else f"{retained:.0f} %",
            f"macro F1 {_share(split.student.metrics.macro_f1)} of the teacher's "
            f"{_share(split.teacher.metrics.macro_f1)}; same answer on {split.agreement.top1:.0%}",
        ))  # fmt: skip
    if content.n_parameters:
        notes = [f"{content.exported_bytes / 1e6:.1f} MB exported"] if content.exported_bytes else []
        if content.teacher_parameters:
            notes.append(f"{content.n_parameters / content.teacher_parameters:.2g} of the teacher's parameters")
        found.append(("Size", f"{content.n_parameters / 1e6:.2f} M", "; ".join(notes) or "parameters"))
    return [dict(zip(("title", "value", "note"), card, strict=True)) for card in found]


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """The line without its last word, which is where to read on; every other part is a flag, not to be broken."""
    page = f"{PAGE}#{verdict.slug}" if verdict.slug else ""
    line = printable(verdict.line.removesuffix(f" [{page}]"))
    return {"slug": verdict.slug, "parts": re.split(r"(--[a-z-]+(?: [\d.]+)?)", line), "page": page}


def _split(content: ReportContent, split: SplitEvaluation, markup: Any) -> dict[str, Any]:
    student, teacher = split.student, split.teacher
    n_classes = len(content.classes)
    told = None if teacher is None else teacher.metrics.calibration
    confusion = confusion_svg(student.metrics.confusion, content.classes)
    width_px = natural_width_px(confusion)
    return {
        "name": split.answers.split,
        "n_images": f"{student.metrics.n_samples:,}",
        "source": split.answers.source,
        "has_teacher": teacher is not None,
        "scores": _score_rows(split),
        "remark": _remark(split),
        "per_class": _class_rows(split),
        "is_narrow": n_classes <= MAX_COUNTED // 2,
        "confusion": markup(confusion),
        "confusion_px": round(0.85 * width_px),
        "confusion_max_px": round(1.25 * width_px),
        "reliability": markup(reliability_svg(student.metrics.calibration, told)),
        "samples": _sample_groups(content, split.answers),
    }


def _score_rows(split: SplitEvaluation) -> list[dict[str, str]]:
    student, teacher = split.student, split.teacher
    mine = student.metrics.headline()
    theirs = teacher.metrics.headline() if teacher else {}
    rows = []
    for name, title in HEADLINE.items():
        retained = split.retention_percent.get(name)
        rows.append({
            "title": title,
            "student": _share(mine[name]), "student_interval": _interval(student.intervals.get(name)),
            "teacher": _share(theirs.get(name)),
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
                "student": _share(scores[column]), "student_percent": _percent(scores[column]),
                "teacher": _share(told.get(column)) if split.teacher else "",
                "teacher_percent": _percent(told.get(column)),
            }
            for column in ("precision", "recall", "f1")
        ]  # fmt: skip
        rows.append({"name": printable(name), "support": f"{scores['support']:,.0f}", "cells": cells})
    return rows


def _sample_groups(content: ReportContent, answers: Answers) -> list[dict[str, Any]]:
    student_NC = probabilities(answers.student_NC)
    teacher_NC = None if answers.teacher_NC is None else probabilities(answers.teacher_NC)
    return [
        {
            "title": group.title,
            "remark": group.remark,
            "samples": [_sample(content, answers, n, student_NC, teacher_NC) for n in group.numbers],
        }
        for group in shown_samples(answers)
    ]


def _sample(
    content: ReportContent, answers: Answers, number: int, student_NC: NDArray[np.float64],
    teacher_NC: NDArray[np.float64] | None,
) -> dict[str, Any]:  # fmt: skip
    names, true = [printable(name) for name in content.classes], int(answers.labels_N[number])
    student_C = student_NC[number]
    teacher_C = None if teacher_NC is None else teacher_NC[number]
    likely_C = student_C if teacher_C is None else np.maximum(student_C, teacher_C)
    order = [int(c) for c in np.argsort(-likely_C, kind="stable") if c != true]
    said = [("student", names[int(student_C.argmax())])]
    if teacher_C is not None:
        said.append(("teacher", names[int(teacher_C.argmax())]))
    picture = content.pictures.get(answers.keys[number])
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


def _setting(value: Any) -> str:
    """A setting as text; of a path its last part: where a file lay is nobody's business."""
    if value is None:
        return "the model's own"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(Path(value).name if isinstance(value, str) and value else str(value))


def _privacy(content: ReportContent) -> str:
    if content.pictures:
        return "This page holds images of DATA: share it only with those who may see them."
    if content.answers is None:
        return "This page holds no image and no file name."
    return "This page holds no image and no file name: images are named by the first letters of their content keys."


def _times(rows: Sequence[Mapping[str, Any]]) -> str:
    took = [row["wall_s"] for row in rows if row.get("wall_s") is not None]
    speeds = [row["images_per_s"] for row in rows if row.get("images_per_s") is not None]
    if not took or not speeds:
        return ""
    return f"{sum(took):,.0f} s for {len(rows)} epochs, {float(np.median(speeds)):.0f} images/s."


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * float(value), 1)
