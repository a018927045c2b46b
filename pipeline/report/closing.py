"""The end of a training: the best student's answers to the validation images, the verdicts on the run, its report.

Trains nothing; everything it writes follows from the run folder. Run: softlabel train DATA t.h5 -o RUN
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.samples import Sample
from pipeline.gate.report import TeacherReport
from pipeline.inference import load_student
from pipeline.metrics.evaluation import Answers
from pipeline.report.content import ReportContent
from pipeline.report.page import write_report
from pipeline.runs import RunFolder
from pipeline.targets import TeacherTargets, teacher_parameters
from pipeline.torchscript import StudentCard
from pipeline.training.config import TrainConfig
from pipeline.training.facts import StudentNumbers, teacher_numbers
from pipeline.training.validation import Validator
from pipeline.training.verdicts import Verdict, verdicts

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
    artefact_bytes: int
    device: str


def close(run: FinishedRun, check_interrupt: Callable[[], None], *, report: bool = True) -> list[Verdict]:
    """The verdicts on the run; with `report` also writes `report.html` of its best student."""
    config, val = run.config, run.validate.targets
    best = run.validate(load_student(run.folder.path, run.device).module, check_interrupt)
    settings = dataclasses.asdict(config)
    teacher = None
    if config.teacher:
        teacher = teacher_numbers(
            run.teachers[run.card.every_task.only], val, run.train, settings, teacher_parameters(val.reader)
        )
    student = StudentNumbers(metrics=best.tasks[run.card.every_task.only].metrics, n_parameters=run.n_parameters)
    found = verdicts(run.rows, settings, teacher, student)
    if not report:
        return found
    learned = {sample.key for sample in run.learned}
    answers = Answers(
        split="val", source="", names=tuple(sample.name for sample in val.samples),
        keys=tuple(sample.key for sample in val.samples), labels_N=val.labels_N, student_NC=best.logits_NK,
        teacher_NC=run.validate.teacher_NK, learned_N=np.array([sample.key in learned for sample in val.samples]),
        teacher_seen_N=val.seen(val.clean_rows()),
    )  # fmt: skip
    content = ReportContent(
        name=run.folder.path.absolute().name, rows=run.rows, settings=settings, classes=run.card.classes,
        verdicts=found, ids={name: value for name, value in run.ids.items() if value}, teacher=run.card.teacher,
        n_parameters=run.n_parameters, exported_bytes=run.artefact_bytes,
        teacher_parameters=None if teacher is None else teacher.n_parameters, answers=answers,
    )  # fmt: skip
    write_report(run.folder.path / REPORT_NAME, content)
    return found
