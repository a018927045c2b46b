"""An evaluation as text for people: scores with their intervals, the teacher's beside them, classes, subgroups.

Computes nothing. Run: softlabel evaluate RUN DATA
C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cache.errors import printable
from pipeline.metrics.bootstrap import Interval
from pipeline.metrics.evaluation import (
    Evaluation,
    ModelScores,
    SeedsEvaluation,
    SplitEvaluation,
    Spread,
    TasksEvaluation,
    TasksSeedsEvaluation,
)
from pipeline.metrics.full import HEADLINE, PER_CLASS
from pipeline.metrics.objective import F1_POINTS, Objective
from pipeline.metrics.sensitivity import OperatingPoint
from pipeline.metrics.subgroups import MIN_IMAGES, SCORES, Subgroup

_MAX_CONFUSION = 30
"""Classes; a wider matrix fits no terminal."""
_SPREAD_NAMES = {"agreement": "agreement (top-1)", "kl_nats": "KL (nats)", "objective": "objective"}


def evaluation_table(evaluation: Evaluation) -> str:
    """Every split: totals, operating point, per-class scores, subgroups, confusion matrix."""
    blocks = (split_lines(split, evaluation.classes) for split in evaluation.splits.values())
    return "\n\n\n".join("\n".join(map(printable, lines)) for lines in blocks)


def seeds_table(evaluation: SeedsEvaluation) -> str:
    """Every split: mean and standard deviation of the seeds, and each seed's own scores."""
    lines = [f"{evaluation.model}: {len(evaluation.seeds)} seeds"]
    for split, spread in evaluation.spread.items():
        first, *others = (one.splits[split] for one in evaluation.seeds.values())
        is_same = all(other.answers.keys == first.answers.keys for other in others)  # not what each held out of train
        teacher = first.teacher.metrics.headline() if first.teacher and is_same else {}
        lines += ["", f"{split}: {first.student.metrics.n_samples:,} images"]
        rows = [
            (HEADLINE.get(score) or _SPREAD_NAMES.get(score, score), _spread(found), _number(teacher.get(score)),
             "  ".join(f"{value:.3f}" for value in found.values))
            for score, found in spread.items()
        ]  # fmt: skip
        lines += _columns([("", "mean +- std", "teacher", "seeds"), *rows])
        if first.objective:
            lines += [f"objective: {F1_POINTS} x macro F1 - size factor; {_whose_size_factor(first.objective)}"]
    return "\n".join(map(printable, lines))


def tasks_table(evaluation: TasksEvaluation) -> str:
    """The table of each task under its name, then the means over the tasks."""
    blocks = [f"{_title(task)}\n\n{evaluation_table(one)}" for task, one in evaluation.tasks.items()]
    lines = [_title(f"mean over {', '.join(evaluation.tasks)}")]
    for split, means in evaluation.mean.items():
        rows = [(split, "student", *(("teacher",) if means.teacher else ()))]
        for score, mine in means.student.items():
            rows.append((HEADLINE[score], _number(mine), *((_number(means.teacher[score]),) if means.teacher else ())))
        lines += ["", *map(printable, _columns(rows))]
    return "\n\n\n".join([*blocks, *(["\n".join(lines)] if evaluation.mean else [])])


def tasks_seeds_table(evaluation: TasksSeedsEvaluation) -> str:
    """The spread of each task under its name, then that of the means over the tasks."""
    blocks = [f"{_title(task)}\n\n{seeds_table(one)}" for task, one in evaluation.tasks.items()]
    lines = [_title(f"mean over {', '.join(evaluation.tasks)}")]
    for split, spread in evaluation.mean.items():
        rows = [
            (HEADLINE[score], _spread(found), "  ".join(f"{value:.3f}" for value in found.values))
            for score, found in spread.items()
        ]
        lines += ["", *map(printable, _columns([(split, "mean +- std", "seeds"), *rows]))]
    return "\n\n\n".join([*blocks, *(["\n".join(lines)] if evaluation.mean else [])])


def _title(text: str) -> str:
    text = printable(text)
    return f"{text}\n{'=' * len(text)}"


def split_lines(split: SplitEvaluation, classes: Sequence[str]) -> list[str]:
    """All that there is to say of one split."""
    lines = [*_heading(split), *_totals(split), *(_objective(split.objective) if split.objective else ())]
    for who, scores in _models(split):
        if scores.sensitivity:
            lines += ["", *_operating(scores.sensitivity)] if who == "student" else []
            lines += [f"{who:10}{_reached(scores.sensitivity)}"]
    lines += ["", *_per_class(split.student)]
    if split.subgroups:
        lines += ["", *_subgroups(split.subgroups)]
    return [*lines, "", *_confusion(split.student, classes)]


def _heading(split: SplitEvaluation) -> Iterator[str]:
    answers, n_images = split.answers, split.student.metrics.n_samples
    yield f"{answers.split}: {n_images:,} images" + (f", {answers.source}" if answers.source else "")
    if split.n_learned:
        which = "these images" if split.n_learned == n_images else f"{split.n_learned:,} of these images"
        yield f"the student learned from {which}: its scores here say little about new ones"
    if split.n_learned is None:
        yield "which of these images the student learned from is not known"
    if split.n_teacher_seen:
        which = "these images" if split.n_teacher_seen == n_images else f"{split.n_teacher_seen:,} of these images"
        yield f"the teacher was fitted on {which}"
    if split.n_resamples:
        drawn = "images" if split.unit == "image" else f"groups of one {split.unit}"
        yield f"[95 % intervals] of {split.n_resamples:,} resamples of {split.n_units:,} {drawn}"


def _totals(split: SplitEvaluation) -> Iterator[str]:
    student, teacher = split.student, split.teacher
    rows = [("", "student", *(("teacher", "student - teacher", "retained") if teacher else ()))]
    for score, name in HEADLINE.items():
        row = [name, _with_interval(getattr(student.metrics, score), student.intervals.get(score))]
        if teacher:
            kept = split.retention_percent.get(score)
            row += [
                _with_interval(getattr(teacher.metrics, score), teacher.intervals.get(score)),
                _with_interval(split.differences[score], split.difference_intervals.get(score), sign="+"),
                "" if kept is None else f"{kept:.1f} %",
            ]
        rows.append(tuple(row))
    yield ""
    yield from _columns(rows)
    yield f"always the largest class: accuracy {student.metrics.majority_share:.3f}"
    if split.agreement:
        yield f"agreement with the teacher: top-1 {split.agreement.top1:.3f}, KL {split.agreement.kl_nats:.3f} nats"


def _objective(objective: Objective) -> Iterator[str]:
    score = _with_interval(objective.score, objective.interval)
    yield f"{objective.name} objective of the student: {F1_POINTS} x macro F1 - {objective.size_factor:.3f} = {score}"
    yield _whose_size_factor(objective)


def _whose_size_factor(objective: Objective) -> str:
    size = f"the exported file has {objective.n_bytes / 1e6:.3f} MB"
    return f"{size}; the size factor is the one you gave: the {objective.name}'s own is not public"


def _operating(point: OperatingPoint) -> Iterator[str]:
    group = ", ".join(point.classes)
    yield (
        f"sensitivity for {group} ({point.n_positive:,} images) at specificity {point.asked_specificity:g} "
        f"({point.n_negative:,} others)"
    )
    if point.same_images:
        yield "the threshold was chosen on these very images: both numbers are optimistic for new ones"
    else:
        yield f"the threshold was chosen on {point.chosen_on}, so that the specificity reached here may differ"


def _reached(point: OperatingPoint) -> str:
    return (
        f"sensitivity {_with_interval(point.sensitivity, point.sensitivity_interval)}  "
        f"specificity {_with_interval(point.specificity, point.specificity_interval)}  threshold {point.threshold:.4f}"
    )


def _per_class(student: ModelScores) -> list[str]:
    rows = [("class", *(score if score != "auroc" else "AUROC" for score in PER_CLASS), "images")]
    for name, scores in student.metrics.per_class.items():
        intervals = student.class_intervals.get(name, {})
        cells = [_with_interval(scores[score], intervals.get(score)) for score in PER_CLASS]
        rows.append((name, *cells, f"{scores['support']:,.0f}"))
    all_intervals = [one for of_class in student.class_intervals.values() for one in of_class.values() if one]
    # All images of a class right, or all wrong: there is nothing to resample, and nothing is certain.
    is_any_empty = any(one.low == one.high for one in all_intervals)
    note = ["an interval without width: the images are all alike in this, a bootstrap cannot tell how sure it is"]
    return _columns(rows) + note * is_any_empty


def _subgroups(subgroups: Sequence[Subgroup]) -> Iterator[str]:
    rows = [("subgroup", "", "images", "classes", *(HEADLINE[score] for score in SCORES))]
    last = ""
    for one in subgroups:
        scores = [_with_interval(getattr(one, score), one.intervals.get(score)) for score in SCORES]
        if one.is_small:
            scores = [f"under {MIN_IMAGES} images: {one.n_correct} right", "", ""]
        column = one.column if one.column != last else ""
        rows.append((column, one.value, f"{one.n_images:,}", str(one.n_classes), *scores))
        last = one.column
    yield from _columns(rows)


def _confusion(student: ModelScores, classes: Sequence[str]) -> Iterator[str]:
    if len(classes) > _MAX_CONFUSION:
        yield f"confusion: {len(classes)} classes are too many for a terminal; -o FOLDER writes them"
        return
    yield "confusion: rows true, columns predicted"
    matrix = student.metrics.confusion
    width = max(5, *(len(str(count)) + 2 for row in matrix for count in row))
    name_width = max(map(len, classes))
    yield " " * (name_width + 4) + "".join(f"{i:>{width}}" for i in range(len(classes)))
    for i, (name, row) in enumerate(zip(classes, matrix, strict=True)):
        yield f"{i:>3} {name:{name_width}}" + "".join(f"{count:{width}}" for count in row)


def _models(split: SplitEvaluation) -> Iterator[tuple[str, ModelScores]]:
    yield "student", split.student
    if split.teacher:
        yield "teacher", split.teacher


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned cells, two blanks between columns."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _with_interval(value: float | None, interval: Interval | None, sign: str = "-") -> str:
    text = _number(value, sign)
    return f"{text} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]" if value is not None and interval else text


def _number(value: float | None, sign: str = "-") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _spread(found: Spread) -> str:
    return f"{found.mean:.3f}" if found.std is None else f"{found.mean:.3f} +- {found.std:.3f}"
