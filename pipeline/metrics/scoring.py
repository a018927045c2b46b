"""Measure a model's answers on one split: scores, intervals, operating points, subgroups, the teacher's beside them.

Knows logits and labels, no images and no models (`pipeline.evaluate` does). Run: softlabel evaluate RUN DATA
N samples, C classes.
"""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.bootstrap import (
    N_RESAMPLES,
    Resamples,
    Scores,
    class_intervals,
    difference_intervals,
    draw_resamples,
    headline_intervals,
    weighted_scores,
)  # fmt: skip
from pipeline.metrics.classification import agreement
from pipeline.metrics.evaluation import (
    RETAINED,
    Answers,
    Evaluation,
    ModelScores,
    SeedsEvaluation,
    SplitEvaluation,
    Spread,
    TaskMeans,
    TasksEvaluation,
    TasksSeedsEvaluation,
)
from pipeline.metrics.full import HEADLINE, full_metrics
from pipeline.metrics.sensitivity import Group, operating_point
from pipeline.metrics.subgroups import subgroup_table

_MAX_AUROC_WORK = 2_000_000
"""Images times classes; with more, the AUROCs of a thousand resamples would take minutes and have no intervals."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked of a split beyond its scores."""

    group_of: Mapping[bytes, str] | None = None
    """Content key -> what the bootstrap draws; None: each image."""
    unit: str = "image"
    n_resamples: int = N_RESAMPLES
    seed: int = 0
    subgroups: Mapping[str, tuple[Mapping[bytes, str], Sequence[str]]] = field(default_factory=dict)
    """Column -> (content key -> subgroup, subgroups in order)."""
    sensitivity_of: tuple[str, ...] = ()
    at_specificity: float = 0.9


def evaluate_split(
    answers: Answers, classes: tuple[str, ...], questions: Questions, thresholds_from: Answers | None = None
) -> SplitEvaluation:
    """All scores of one split; `thresholds_from` has the images that choose the operating points, None: its own."""
    groups = [key.hex() if questions.group_of is None else questions.group_of[key] for key in answers.keys]
    resamples = draw_resamples(groups, n_resamples=questions.n_resamples, seed=questions.seed)
    student, drawn = _model_scores("student", answers, classes, questions, thresholds_from, resamples)
    teacher, drawn_too = None, Scores()
    if answers.teacher_NC is not None:
        teacher, drawn_too = _model_scores("teacher", answers, classes, questions, thresholds_from, resamples)
    subgroups = [
        subgroup_table(
            answers.student_NC, answers.labels_N, classes, column, [name_of[key] for key in answers.keys], order,
            groups, n_resamples=questions.n_resamples, seed=questions.seed,
        ) for column, (name_of, order) in questions.subgroups.items()
    ]  # fmt: skip
    return SplitEvaluation(
        answers=answers,
        n_learned=None if answers.learned_N is None else int(answers.learned_N.sum()),
        n_teacher_seen=None if answers.teacher_seen_N is None else int(answers.teacher_seen_N.sum()),
        unit=questions.unit, n_units=len(set(groups)), n_resamples=questions.n_resamples if resamples else 0,
        student=student, teacher=teacher,
        agreement=None if answers.teacher_NC is None else agreement(answers.student_NC, answers.teacher_NC),
        differences=_compared(student, teacher, HEADLINE, operator.sub),
        difference_intervals=difference_intervals(drawn, drawn_too) if drawn and drawn_too else {},
        retention_percent=_compared(student, teacher, RETAINED, _percent),
        subgroups=tuple(subgroup for table in subgroups for subgroup in table),
    )  # fmt: skip


def mean_over_tasks(tasks: Mapping[str, Evaluation]) -> dict[str, TaskMeans]:
    """Split -> means over the tasks, of the splits in which all of them are measured."""
    evaluations = list(tasks.values())
    found = {}
    for name in (name for name in evaluations[0].splits if all(name in one.splits for one in evaluations)):
        splits = [one.splits[name] for one in evaluations]
        teachers = [split.teacher for split in splits if split.teacher]
        found[name] = TaskMeans(
            student=_means([split.student for split in splits]),
            teacher=_means(teachers) if len(teachers) == len(splits) else None,
        )
    return found


def _means(models: Sequence[ModelScores]) -> dict[str, float | None]:
    values = {name: [getattr(one.metrics, name) for one in models] for name in RETAINED}
    return {name: None if None in of_tasks else statistics.fmean(of_tasks) for name, of_tasks in values.items()}


def seeds_evaluation(model: str, seeds: Mapping[str, TasksEvaluation]) -> SeedsEvaluation | TasksSeedsEvaluation:
    """The evaluations of several seeds with their spread, for each task and for the means over them."""
    first = next(iter(seeds.values()))
    tasks = {}
    for task in (task for task in first.tasks if all(task in one.tasks for one in seeds.values())):
        of_task = {name: one.tasks[task] for name, one in seeds.items()}
        tasks[task] = SeedsEvaluation(model=model, seeds=of_task, spread=spread_over_seeds(list(of_task.values())))
    if first.is_single:
        return next(iter(tasks.values()))
    means = [{split: means.student for split, means in one.mean.items()} for one in seeds.values()]
    return TasksSeedsEvaluation(model=model, tasks=tasks, mean=_spreads(means))


def spread_over_seeds(seeds: Sequence[Evaluation]) -> dict[str, dict[str, Spread]]:
    """Split -> score -> mean and standard deviation over the seeds, where all of them have it."""
    return _spreads([{name: _spread_scores(split) for name, split in one.splits.items()} for one in seeds])


def _spreads(seeds: Sequence[Mapping[str, Mapping[str, float | None]]]) -> dict[str, dict[str, Spread]]:
    found: dict[str, dict[str, Spread]] = {}
    for split in (name for name in seeds[0] if all(name in one for one in seeds)):
        found[split] = {}
        for score in seeds[0][split]:
            values = tuple(value for one in seeds if (value := one[split].get(score)) is not None)
            if len(values) == len(seeds):
                std = statistics.stdev(values) if len(values) > 1 else None
                found[split][score] = Spread(statistics.fmean(values), std, values)
    return found


def _spread_scores(split: SplitEvaluation) -> dict[str, float | None]:
    scores = split.student.metrics.headline()
    if split.student.sensitivity:
        scores |= {"sensitivity": split.student.sensitivity.sensitivity}
        scores |= {"specificity": split.student.sensitivity.specificity}
    if split.agreement:
        scores |= {"agreement": split.agreement.top1, "kl_nats": split.agreement.kl_nats}
    if split.objective:
        scores |= {"objective": split.objective.score}
    return scores


def _model_scores(
    who: str, answers: Answers, classes: tuple[str, ...], questions: Questions, thresholds_from: Answers | None,
    resamples: Resamples | None,
) -> tuple[ModelScores, Scores]:  # fmt: skip
    """(scores of one of the two models, what it scores in the resamples)."""
    logits_NC = _logits(who, answers)
    assert logits_NC is not None
    drawn = Scores()
    if resamples is not None:
        with_auroc = logits_NC.size <= _MAX_AUROC_WORK
        drawn = resamples.scores(weighted_scores(logits_NC, answers.labels_N, auroc=with_auroc))
    point = None
    if group := questions.sensitivity_of:
        others_NC = None if thresholds_from is None else _logits(who, thresholds_from)
        threshold = None
        if thresholds_from is not None and others_NC is not None:
            others = Group.of(others_NC, thresholds_from.labels_N, classes, group)
            threshold = others.threshold(questions.at_specificity)
        chooser = answers if thresholds_from is None or threshold is None else thresholds_from
        point = operating_point(
            Group.of(logits_NC, answers.labels_N, classes, group), group, questions.at_specificity,
            threshold=threshold, chosen_on=chooser.split, resamples=resamples,
        )  # fmt: skip
    scores = ModelScores(
        metrics=full_metrics(logits_NC, answers.labels_N, classes), sensitivity=point,
        intervals=headline_intervals(drawn) if drawn else {},
        class_intervals=class_intervals(drawn, classes) if drawn else {},
    )  # fmt: skip
    return scores, drawn


def _logits(who: str, answers: Answers) -> NDArray[np.float32] | None:
    return answers.student_NC if who == "student" else answers.teacher_NC


def _compared(
    student: ModelScores,
    teacher: ModelScores | None,
    names: Iterable[str],
    compare: Callable[[float, float], float | None],
) -> dict[str, float | None]:
    if teacher is None:
        return {}
    pairs = {name: (getattr(student.metrics, name), getattr(teacher.metrics, name)) for name in names}
    return {name: None if None in pair else compare(*pair) for name, pair in pairs.items()}


def _percent(mine: float, theirs: float) -> float | None:
    return 100 * mine / theirs if theirs else None
