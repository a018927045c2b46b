"""Write a report: one HTML page that needs nothing else, no network and no script. Computes no score of its own.

A pure function of its content: the same content gives the same bytes. Run: softlabel report RUN DATA
N samples, C classes.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache import durable
from cache.errors import printable
from pipeline.metrics.evaluation import SplitEvaluation
from pipeline.metrics.scoring import Questions, evaluate_split
from pipeline.report.content import ReportContent
from pipeline.report.figures import curves
from pipeline.report.section import Section, share
from pipeline.training.rows import BY_MEAN, chosen_by
from pipeline.training.verdicts import PAGE, Verdict

Splits = Mapping[str, SplitEvaluation]
"""Task -> the scores that the page is about."""


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
    asked = Questions() if content.group_of is None else Questions(group_of=content.group_of, unit="group")
    scored = {task: evaluate_split(answers, content.tasks[task], asked) for task, answers in content.answers.items()}
    best = _best_row(content)
    teacher_f1 = _mean_of(_told(scored)) if scored and _is_on_val(scored) else None
    drawn = curves(content.rows, content.settings, int(best["epoch"]), teacher_f1, list(content.tasks))
    several = len(content.tasks) > 1
    sections = [
        Section(task if several else "", f"task{number}-" if several else "", content.tasks[task], split)
        for number, (task, split) in enumerate(scored.items())
    ]
    return environment.get_template("page.html").render(
        name=printable(content.name),
        lead=_lead(content),
        cards=_cards(content, best, scored),
        tasks=_task_rows(content, best, scored) if several else [],
        has_teacher=_is_on_val(scored) and any(_told(scored)),
        verdicts=[_verdict(one) for one in content.verdicts],
        best_epoch=int(best["epoch"]),
        n_epochs=len(content.rows),
        curves=[(title, Markup(svg)) for title, svg in drawn],
        sections=[section.parts(content.pictures, Markup) for section in sections],
        settings=[(title, _setting(value)) for title, value in content.settings.items() if title != "cache"],
        ids=[(title, printable(value)) for title, value in content.ids.items()],
        privacy=_privacy(content),
        times=_times(content.rows),
    )


def _best_row(content: ReportContent) -> Mapping[str, Any]:
    """That of the epoch whose student the run keeps: the first of the best."""
    best_by = str(content.settings.get("best_by", BY_MEAN))
    return max(content.rows, key=lambda row: chosen_by(row, best_by))


def _told(scored: Splits) -> list[float | None]:
    """The teacher's macro F1 in each task, None where it is not known."""
    return [split.teacher.metrics.macro_f1 if split.teacher else None for split in scored.values()]


def _is_on_val(scored: Splits) -> bool:
    return all(split.answers.split == "val" for split in scored.values())


def _mean_of(values: Sequence[float | None]) -> float | None:
    """None where one is not known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _lead(content: ReportContent) -> str:
    settings = content.settings
    taught = "hard labels alone" if not settings.get("teacher", True) else f"taught by {content.teacher or 'a cache'}"
    return printable(
        f"{_setting(settings.get('student', 'a student'))} at {settings.get('student_size_px', '?')} px, "
        f"{_questions(content)}, {taught}"
    )


def _questions(content: ReportContent) -> str:
    if len(content.tasks) == 1:
        return f"{len(content.tasks.outputs)} classes"
    of_tasks = ", ".join(f"{task} with {len(names)}" for task, names in content.tasks.items())
    return f"{len(content.tasks)} tasks ({of_tasks} classes)"


def _cards(content: ReportContent, best: Mapping[str, Any], scored: Splits) -> list[dict[str, str]]:
    mean = f", mean of {len(content.tasks)} tasks" if len(content.tasks) > 1 else ""
    best_by = content.settings.get("best_by", BY_MEAN)
    chosen = f" by {best_by}" if mean and best_by != BY_MEAN else ""
    found = [
        ("Validation macro F1", share(best["val_macro_f1"]),
         printable(f"best epoch{chosen} {best['epoch']:g} of {len(content.rows)}{mean}")),
        ("Validation balanced accuracy", share(best["val_balanced_accuracy"]),
         f"accuracy {share(best['val_accuracy'])}{mean}"),
    ]  # fmt: skip
    agreed = _mean_of([split.agreement.top1 if split.agreement else None for split in scored.values()])
    own, told = _mean_of([split.student.metrics.macro_f1 for split in scored.values()]), _mean_of(_told(scored))
    if own is not None and told is not None and agreed is not None:
        found.append((
            f"Retention on {next(iter(scored.values())).answers.split}", f"{100 * own / told:.0f} %" if told else "-",
            f"macro F1 {share(own)} of the teacher's {share(told)}; same answer on {agreed:.0%}{mean}",
        ))  # fmt: skip
    if content.n_parameters:
        notes = [f"{content.exported_bytes / 1e6:.1f} MB exported"] if content.exported_bytes else []
        if content.teacher_parameters:
            notes.append(f"{content.n_parameters / content.teacher_parameters:.2g} of the teacher's parameters")
        found.append(("Size", f"{content.n_parameters / 1e6:.2f} M", "; ".join(notes) or "parameters"))
    return [dict(zip(("title", "value", "note"), card, strict=True)) for card in found]


def _task_rows(content: ReportContent, best: Mapping[str, Any], scored: Splits) -> list[dict[str, str]]:
    """Each task at the best epoch on the validation images, and their mean; the teacher's where it is known there."""
    columns = ("val_macro_f1", "val_balanced_accuracy", "val_accuracy")
    scored, rows = scored if _is_on_val(scored) else {}, []
    for task, names in content.tasks.items():
        split = scored.get(task)
        kept = split.retention_percent.get("macro_f1") if split else None
        rows.append({
            "title": printable(task), "classes": f"{len(names)}",
            **{column: share(best.get(f"{task}/{column}")) for column in columns},
            "teacher": share(split.teacher.metrics.macro_f1 if split and split.teacher else None),
            "retained": "-" if kept is None else f"{kept:.0f} %",
        })  # fmt: skip
    own, told = best["val_macro_f1"], _mean_of(_told(scored)) if len(scored) == len(content.tasks) else None
    rows.append({
        "title": "mean", "classes": "", **{column: share(best[column]) for column in columns}, "teacher": share(told),
        "retained": f"{100 * own / told:.0f} %" if told else "-",
    })  # fmt: skip
    return rows


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """The line without its last word, which is where to read on; every other part is a flag, not to be broken."""
    page = f"{PAGE}#{verdict.slug}" if verdict.slug else ""
    line = printable(verdict.line.removesuffix(f" [{page}]"))
    return {"slug": verdict.slug, "parts": re.split(r"(--[a-z-]+(?: [\d.]+)?)", line), "page": page}


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
    if not content.answers:
        return "This page holds no image and no file name."
    return "This page holds no image and no file name: images are named by the first letters of their content keys."


def _times(rows: Sequence[Mapping[str, Any]]) -> str:
    took = [row["wall_s"] for row in rows if row.get("wall_s") is not None]
    speeds = [row["images_per_s"] for row in rows if row.get("images_per_s") is not None]
    if not took or not speeds:
        return ""
    return f"{sum(took):,.0f} s for {len(rows)} epochs, {float(np.median(speeds)):.0f} images/s."
