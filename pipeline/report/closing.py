"""The end of a training: the best student's answers to the validation images, the verdicts on the run, its report.

Trains nothing; everything it writes follows from the run folder. Run: softlabel train DATA t.h5 -o RUN
N samples, T tasks, C classes of one, K columns of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from data.samples import Sample
from pipeline.answers import said_groups
from pipeline.card import StudentCard
from pipeline.gate.report import TeacherReport
from pipeline.inference import load_student
from pipeline.losses.distillation import UNLABELLED
from pipeline.metrics.evaluation import Answers
from pipeline.report.content import ReportContent
from pipeline.report.page import write_report
from pipeline.runs import RunFolder
from pipeline.students.budget import Artefact, check_budget
from pipeline.targets import TeacherTargets, teacher_parameters
from pipeline.training.config import TrainConfig
from pipeline.training.facts import StudentNumbers, teacher_numbers
from pipeline.training.validation import Validator
from pipeline.training.verdicts import Verdict, verdicts_on

REPORT_NAME = "report.html"


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What is at hand when the last epoch has ended."""

    folder: RunFolder
    config: TrainConfig
    card: StudentCard
    rows: Sequence[dict[str, Any]]
    ids: dict[str, str]
    teachers: Mapping[str, TeacherReport]
    """Task -> what its answers are worth."""
    train: TeacherTargets
    validate: Validator
    learned: Sequence[Sample]
    n_parameters: int
    artefact: Artefact
    device: str


def close(run: FinishedRun, check_interrupt: Callable[[], None], *, report: bool = True) -> list[Verdict]:
    """The verdicts on the run; with `report` also writes `report.html` of its best student."""
    config, val = run.config, run.validate.targets
    student = load_student(run.folder.path, run.device).module
    best = run.validate(student, check_interrupt)
    settings = dataclasses.asdict(config)
    n_teacher = teacher_parameters(val.reader)
    teachers = {
        task: teacher_numbers(one, val.of_task(task), run.train.of_task(task), settings, n_teacher)
        for task, one in run.teachers.items()
    } if config.teacher else {}  # fmt: skip
    students = {
        task: StudentNumbers(metrics=one.metrics, n_parameters=run.n_parameters) for task, one in best.tasks.items()
    }
    found = verdicts_on(run.card.tasks, run.rows, settings, teachers, students)
    if not report:
        return found
    content = ReportContent(
        name=run.folder.path.absolute().name, rows=run.rows, settings=settings, tasks=run.card.every_task,
        verdicts=found, ids={name: value for name, value in run.ids.items() if value}, teacher=run.card.teacher,
        n_parameters=run.n_parameters, exported_bytes=_exported_bytes(run, student),
        teacher_parameters=n_teacher if teachers else None, answers=_answers(run, best.logits_NK),
        group_of=said_groups(val.samples),
    )  # fmt: skip
    write_report(run.folder.path / REPORT_NAME, content)
    return found


def _exported_bytes(run: FinishedRun, student: nn.Module) -> int:
    """Exactly: there is time for it now."""
    if run.artefact.is_exact:
        return run.artefact.n_bytes
    return check_budget(student, run.card, run.config.budget_mb)


def _answers(run: FinishedRun, student_NK: NDArray[np.float32]) -> dict[str, Answers]:
    """Task -> what both say of the validation images that have a label in it."""
    val, learned = run.validate.targets, {sample.key for sample in run.learned}
    seen_N, found = val.seen(val.clean_rows()), {}
    for number, (task, columns) in enumerate(run.card.every_task.columns.items()):
        labelled = np.flatnonzero(val.labels_NT[:, number] != UNLABELLED)
        samples = [val.samples[at] for at in labelled.tolist()]
        found[task] = Answers(
            split="val", source="", names=tuple(sample.name for sample in samples),
            keys=tuple(sample.key for sample in samples), labels_N=val.labels_NT[labelled, number],
            student_NC=student_NK[labelled, columns], teacher_NC=run.validate.teacher_NK[labelled, columns],
            learned_N=np.array([sample.key in learned for sample in samples]), teacher_seen_N=seen_N[labelled],
        )  # fmt: skip
    return found
