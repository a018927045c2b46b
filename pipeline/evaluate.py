"""Measure a finished student on the splits of a data folder, its teacher beside it where the cache has the images.

Never trains, loads no teacher: the teacher's answers come from the cache. `pipeline.measuring` asks for the scores.
Run: softlabel evaluate RUN DATA -o SCORES
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.options import ScanOptions
from data.splits import SPLITS
from pipeline.answers import Answering, caches_of
from pipeline.arguments import check_model_and_data
from pipeline.bad_images import opened, scan_like
from pipeline.errors import RunError, SettingError
from pipeline.formats import torchscript
from pipeline.inference import Student, load_student
from pipeline.measuring import Measuring
from pipeline.metrics.evaluation import (
    AnyEvaluation,
    Evaluation,
    SeedsEvaluation,
    TasksEvaluation,
    TasksSeedsEvaluation,
)
from pipeline.metrics.objective import objective_of, parsed_size_factor
from pipeline.metrics.scoring import mean_over_tasks, seeds_evaluation
from pipeline.metrics.sensitivity import group_of_task
from pipeline.process import resolve_device
from pipeline.runs import seed_runs

log = logging.getLogger(__name__)

THRESHOLDS_FROM = ("auto", "val", "same")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured."""

    split: str = "all"
    """`train`, `val`, `test`, or `all` that there are."""
    csv: Path | None = None
    """Table with a row an image, for the columns below."""
    image_column: str | None = None
    """Its column of images; None: the first of `data.sources.tables.IMAGE_COLUMNS` there is."""
    group_column: str | None = None
    """Which images belong together: the bootstrap draws whole groups. None: each image is one."""
    subgroup_columns: tuple[str, ...] = ()
    """Each makes a table of scores by its values."""
    sensitivity_of: tuple[str, ...] = ()
    """Classes of one task that together must not be missed; `task: class` where several have a class of this name."""
    at_specificity: float = 0.9
    """Share of the other images that must be left alone, in (0, 1]."""
    threshold_from: str = "auto"
    """Whose images choose the threshold: `val`, the `same` that it is measured on, `auto`: val where there is one."""
    objective: str | None = None
    """Of OBJECTIVES: a score that counts bytes, too, shown beside the others."""
    size_factor: str | None = None
    """What that takes off for bytes: points such as `0.35`, or points per megabyte such as `0.02/MB`."""
    n_resamples: int = 1000
    """Of the bootstrap."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        for name, low, high in (("at_specificity", 0.01, 1), ("n_resamples", 40, 1_000_000)):
            if not low <= getattr(self, name) <= high:
                raise SettingError(f"{name} must be in {low:g}..{high:g}, got {getattr(self, name)}")
        for name, known in (("split", (*SPLITS, "all")), ("threshold_from", THRESHOLDS_FROM)):
            if getattr(self, name) not in known:
                raise SettingError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        parsed_size_factor(self.objective, self.size_factor)
        has_columns = self.group_column is not None or bool(self.subgroup_columns)
        if has_columns and self.csv is None:
            raise SettingError("--group-column and --subgroup-column are columns of a table: name it by --csv FILE")
        if self.csv is not None and not has_columns:
            raise SettingError("--csv is read for --group-column COLUMN or --subgroup-column COLUMN: name at least one")


def evaluate(
    model: str | Path,
    data: str | Path,
    config: EvaluateConfig = EvaluateConfig(),
    *,
    cache: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    scan: ScanOptions = ScanOptions(),
) -> Evaluation:
    """Evaluate a run folder or an exported file on the clean view of every image of its splits.

    `cache` is where the teacher's answers stand; None takes the one the run was trained with, if it is still there.
    Of a student of one task; RunError for others, which `evaluate_tasks` takes.
    """
    student = _loaded(model, data, device)
    if len(tasks := student.card.tasks) > 1:
        raise RunError(f"{model} answers several tasks: evaluate_tasks measures each of {', '.join(tasks)}")
    (found,) = _evaluated(student, model, data, config, cache, workers, scan).tasks.values()
    return found


def evaluate_tasks(
    model: str | Path,
    data: str | Path,
    config: EvaluateConfig = EvaluateConfig(),
    *,
    cache: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    scan: ScanOptions = ScanOptions(),
) -> TasksEvaluation:
    """As `evaluate`, of a student of any number of tasks: each of those that DATA has labels of, and their means."""
    return _evaluated(_loaded(model, data, device), model, data, config, cache, workers, scan)


def _loaded(model: str | Path, data: str | Path, device: str) -> Student:
    check_model_and_data(model, data)
    return load_student(model, resolve_device(device))


def _evaluated(
    student: Student, model: str | Path, data: str | Path, config: EvaluateConfig, cache: Path | None,
    workers: int | None, scan: ScanOptions,
) -> TasksEvaluation:  # fmt: skip
    group_of_task(config.sensitivity_of, student.card.every_task)
    _check_objective(student, model, config)
    images = scan_like(opened(caches_of(student, cache)), data, scan)
    return _of_tasks(student, model, Measuring(Answering(student, images, cache, workers, scan), config), config)


def evaluate_seeds(
    folder: str | Path,
    data: str | Path,
    config: EvaluateConfig = EvaluateConfig(),
    *,
    cache: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    scan: ScanOptions = ScanOptions(),
) -> SeedsEvaluation | TasksSeedsEvaluation:
    """Evaluate each run of `train --seeds` alike: mean and standard deviation over the seeds."""
    check_model_and_data(folder, data)
    students = {path.name: load_student(path, resolve_device(device)) for path in seed_runs(folder)}
    tasks = {name: student.card.every_task for name, student in students.items()}
    if differing := [name for name, of_run in tasks.items() if list(of_run) != list(next(iter(tasks.values())))]:
        raise RunError(f"{folder}/{differing[0]} answers other tasks than the runs beside it: evaluate each by itself")
    for name, of_run in tasks.items():
        group_of_task(config.sensitivity_of, of_run)
        _check_objective(students[name], Path(folder, name), config)
    images = scan_like(opened(caches_of(next(iter(students.values())), cache)), data, scan)
    found = {}
    for name, student in students.items():
        log.info("%s of %d seeds", name, len(students))
        measuring = Measuring(Answering(student, images, cache, workers, scan), config)
        found[name] = _of_tasks(student, Path(folder, name), measuring, config)
    return seeds_evaluation(str(folder), found)


def evaluate_any(
    model: str | Path, data: str | Path, config: EvaluateConfig = EvaluateConfig(), **options: Any
) -> AnyEvaluation:
    """`evaluate_seeds` of a folder of several runs, `evaluate_tasks` of anything else; a single task stands alone."""
    if seed_runs(model):
        return evaluate_seeds(model, data, config, **options)
    found = evaluate_tasks(model, data, config, **options)
    return next(iter(found.tasks.values())) if found.is_single else found


def _of_tasks(student: Student, model: str | Path, measuring: Measuring, config: EvaluateConfig) -> TasksEvaluation:
    tasks, notices = measuring.evaluations(str(model), _notices(student))
    if config.objective is not None:
        n_bytes = _exported_bytes(student, model)
        tasks = {task: _with_objective(one, config, n_bytes) for task, one in tasks.items()}
    return TasksEvaluation(
        model=str(model), tasks=tasks, mean=mean_over_tasks(tasks), notices=notices,
        is_single=len(student.card.tasks) == 1,
    )  # fmt: skip


def _check_objective(student: Student, model: str | Path, config: EvaluateConfig) -> None:
    if config.objective is not None and len(tasks := student.card.tasks) > 1:
        raise RunError(f"the {config.objective} has one task, and {model} answers {', '.join(tasks)}")


def _with_objective(evaluation: Evaluation, config: EvaluateConfig, n_bytes: int) -> Evaluation:
    factor = parsed_size_factor(config.objective, config.size_factor)
    assert factor is not None
    splits = {
        name: replace(
            split,
            objective=objective_of(
                factor, n_bytes, split.student.metrics.macro_f1, split.student.intervals.get("macro_f1")
            ),
        ) for name, split in evaluation.splits.items()
    }  # fmt: skip
    return replace(evaluation, splits=splits)


def _exported_bytes(student: Student, model: str | Path) -> int:
    """Size of an exported file; of a run that of its TorchScript export with float32 weights, which is not written."""
    if student.run is None:
        return Path(model).stat().st_size
    return len(torchscript.to_bytes(student.module, student.card))


def _notices(student: Student) -> tuple[str, ...]:
    """What a reader of the scores must know of the run."""
    if student.run is None:
        return ()
    try:
        student.run.check_finished()
    except RunError as interrupted:
        return (f"these are the scores of the best student so far: {interrupted}",)
    return ()
