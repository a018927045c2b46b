"""What a report of a finished run is made of: its folder, and with the images what student and teacher say of them.

Draws nothing (`pipeline.report.page` does), trains nothing, loads no teacher. Run: softlabel report RUN DATA
N samples.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cache import CacheError, open_caches
from cache.errors import CacheMismatch
from data.options import ScanOptions
from data.reading import read_sample
from data.samples import Sample
from data.views import CLEAN_ROW, render
from pipeline.answers import Answering, caches_of, said_groups
from pipeline.arguments import check_model_and_data
from pipeline.bad_images import opened, scan_like
from pipeline.errors import RunError, SettingError
from pipeline.formats import torchscript
from pipeline.gate.report import teacher_reports
from pipeline.inference import Student, load_student
from pipeline.joining import join
from pipeline.metrics import classification_metrics
from pipeline.metrics.evaluation import Answers
from pipeline.process import resolve_device
from pipeline.report.content import ReportContent, shown_samples
from pipeline.runs import seed_runs
from pipeline.targets import teacher_parameters
from pipeline.training.facts import StudentNumbers, TeacherNumbers, teacher_numbers
from pipeline.training.verdicts import verdicts_on

log = logging.getLogger(__name__)

PICTURE_PX = 224
"""Side of a picture, whatever the student sees: people are to recognise it."""


def gather(
    run: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "val",
    cache: Path | None = None,
    with_images: bool = False,
    device: str = "auto",
    workers: int | None = None,
    scan: ScanOptions = ScanOptions(),
) -> ReportContent:
    """The content of a report; without `data` that is curves, settings, and the verdicts that need no images.

    `cache` is where the teacher's answers stand; None takes the one the run was trained with, if it is still there.
    """
    check_run(run)
    if data is not None:
        check_model_and_data(run, data, "report")
    student = load_student(run, resolve_device(device))
    rows, settings = read_rows(Path(run)), read_settings(Path(run))
    assert student.run is not None
    best = student.run.load_best()
    card, ids = best.card, best.ids
    answers, pictures, group_of = dict[str, Answers](), dict[bytes, bytes](), None
    teachers, students = dict[str, TeacherNumbers](), dict[str, StudentNumbers]()
    if data is not None:
        images = scan_like(opened(caches_of(student, cache)), data, scan)
        answering = Answering(student, images, cache, workers, scan)
        answers = answering.answers(split)
        for notice in answering.notices([split]).values():
            log.info("notice   %s", notice)
        students = _student_numbers(student, split, answers, answering)
        teachers = _teacher_numbers(student, answering, images.words, cache, settings)
        group_of = said_groups(images.samples)
        if with_images:
            pictures = take_pictures(answers, answering.samples(split), card.geometry)
    return ReportContent(
        name=Path(run).absolute().name,
        rows=rows,
        settings={name: value for name, value in settings.items() if name != "cache"},
        tasks=card.every_task,
        verdicts=verdicts_on(card.tasks, rows, settings, teachers, students),
        ids={name: value for name, value in ids.items() if isinstance(value, str) and value},
        teacher=card.teacher,
        n_parameters=_n_parameters(student),
        exported_bytes=len(torchscript.to_bytes(student.module, card)),
        teacher_parameters=next((one.n_parameters for one in teachers.values()), None),
        answers=answers,
        group_of=group_of,
        pictures=pictures,
    )


def check_run(run: str | Path) -> None:
    """RunError where `run` is an exported file, or the folder of several seeds."""
    if seeds := seed_runs(run):
        raise RunError(f"{run} holds {len(seeds)} runs: report one of them, such as {seeds[0]}")
    if Path(run).is_file():
        raise RunError(f"{run} is a file; a report needs the run folder that `softlabel train` wrote")


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv, numbers, None where nothing was measured; RunError where there is none, or no number."""
    path = run / "metrics.csv"
    try:
        table = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        rows: list[dict[str, Any]] = [
            {name: float(text) if text else None for name, text in row.items()} for row in table
        ]
        for row in rows:
            row["epoch"], row["val_macro_f1"] = int(row["epoch"]), float(row["val_macro_f1"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is missing or damaged; `softlabel train ... --resume` writes it anew") from error
    if not rows:
        raise RunError(f"{path} has no epoch yet")
    return rows


def read_settings(run: Path) -> dict[str, Any]:
    """The settings of config.json; RunError where there are none."""
    path = run / "config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not {"temperature", "alpha"} <= settings.keys():
            raise ValueError("no settings of a student")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is missing or damaged; `softlabel train ... --resume` writes it anew") from error
    return dict(settings)


def take_pictures(answers: Mapping[str, Answers], samples: Sequence[Sample], geometry: str) -> dict[bytes, bytes]:
    """Content key -> JPEG of the clean view, of the images that a report of these answers shows in any task."""
    sample_of = {sample.key: sample for sample in samples}
    shown = ((one, number) for one in answers.values() for group in shown_samples(one) for number in group.numbers)
    keys = dict.fromkeys(one.keys[number] for one, number in shown)
    return {key: _jpeg(render(read_sample(sample_of[key]), CLEAN_ROW, PICTURE_PX, geometry)) for key in keys}


def _jpeg(view: Tensor) -> bytes:
    """A uint8 view [3, S, S] as a JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(view.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _n_parameters(student: Student) -> int:
    return sum(weights.numel() for weights in student.module.parameters())


def _student_numbers(
    student: Student, split: str, answers: Mapping[str, Answers], answering: Answering
) -> dict[str, StudentNumbers]:
    """Of the images that validated it, whatever split the report is of; task -> numbers."""
    if "val" not in answering.splits:
        return {}
    n_parameters = _n_parameters(student)
    return {
        task: StudentNumbers(
            metrics=classification_metrics(val.student_NC, val.labels_N, answering.tasks[task]),
            n_parameters=n_parameters,
        ) for task, val in (answers if split == "val" else answering.answers("val")).items()
    }  # fmt: skip


def _teacher_numbers(
    student: Student, answering: Answering, words: Sequence[str], cache: Path | None, settings: dict[str, Any]
) -> dict[str, TeacherNumbers]:
    """Task -> numbers; none, with a notice where there should be some, for hard labels or where the cache is gone."""
    assert student.run is not None
    paths = caches_of(student, cache)
    if not settings.get("teacher", True) or not paths or not {"train", "val"} <= set(answering.splits):
        return {}
    try:
        reader = open_caches(paths, memory_map=False)
        if cache is None and reader.recipe_id != student.recipe_id:
            raise CacheMismatch(f"{reader.path} is no longer the cache that this run was trained on")
        groups = {split: answering.samples(split) for split in ("train", "val")}
        targets = join(reader, groups, words, student.card.tasks, clean=["val"])
        train, val, n_parameters = targets["train"], targets["val"], teacher_parameters(reader)
        return {
            task: teacher_numbers(report, val.of_task(task), train.of_task(task), settings, n_parameters)
            for task, report in teacher_reports(val, "val", train).items() if train.of_task(task).samples
        }  # fmt: skip
    except CacheError as error:
        log.info("no verdicts on the teacher: %s", error)
        return {}


def check_options(data: Path | None, with_images: bool, split: str | None, cache: Path | None) -> None:
    """SettingError for options that say something of images, where there are none."""
    given = {"--with-images": with_images, "--split": split is not None, "--cache": cache is not None}
    if data is None and (named := [option for option, is_given in given.items() if is_given]):
        raise SettingError(f"{' and '.join(named)} needs the images: `softlabel report RUN DATA {named[0]} ...`")
