"""Measure a finished student on the splits of a data folder, its teacher beside it where the cache has the images.

Never trains, loads no teacher: the teacher's answers come from the cache. Scores are made in `pipeline.metrics`.
Run: softlabel evaluate RUN DATA -o SCORES
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.errors import BadSamples, DataNotFound
from data.groups import read_groups
from data.options import ScanOptions
from data.samples import Sample
from data.splits import SPLITS
from pipeline.answers import Answering, cache_of
from pipeline.bad_images import opened, scan_like
from pipeline.errors import RunError, SettingError
from pipeline.inference import Student, load_student
from pipeline.metrics.evaluation import Evaluation, SeedsEvaluation
from pipeline.metrics.scoring import Questions, evaluate_split, spread_over_seeds
from pipeline.metrics.sensitivity import check_group
from pipeline.metrics.subgroups import name_values
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
    """Its column of images; None: the first of `data.tables.IMAGE_COLUMNS` there is."""
    group_column: str | None = None
    """Which images belong together: the bootstrap draws whole groups. None: each image is one."""
    subgroup_columns: tuple[str, ...] = ()
    """Each makes a table of scores by its values."""
    sensitivity_of: tuple[str, ...] = ()
    """Classes that together must not be missed."""
    at_specificity: float = 0.9
    """Share of the other images that must be left alone, in (0, 1]."""
    threshold_from: str = "auto"
    """Whose images choose the threshold: `val`, the `same` that it is measured on, `auto`: val where there is one."""
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
    """
    check_arguments(model, data)
    student = load_student(model, resolve_device(device))
    check_group(config.sensitivity_of, student.card.classes)
    images = scan_like(opened(cache_of(student, cache)), data, scan)
    answering = Answering(student, images, cache, workers, scan)
    return _Measuring(answering, config).evaluation(str(model), _notices(student))


def evaluate_seeds(
    folder: str | Path,
    data: str | Path,
    config: EvaluateConfig = EvaluateConfig(),
    *,
    cache: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    scan: ScanOptions = ScanOptions(),
) -> SeedsEvaluation:
    """Evaluate each run of `train --seeds` alike: mean and standard deviation over the seeds."""
    check_arguments(folder, data)
    students = {path.name: load_student(path, resolve_device(device)) for path in seed_runs(folder)}
    for student in students.values():
        check_group(config.sensitivity_of, student.card.classes)
    images = scan_like(opened(cache_of(next(iter(students.values())), cache)), data, scan)
    found = {}
    for name, student in students.items():
        log.info("%s of %d seeds", name, len(students))
        answering = Answering(student, images, cache, workers, scan)
        found[name] = _Measuring(answering, config).evaluation(str(Path(folder, name)), _notices(student))
    return SeedsEvaluation(model=str(folder), seeds=found, spread=spread_over_seeds(list(found.values())))


def evaluate_any(
    model: str | Path, data: str | Path, config: EvaluateConfig = EvaluateConfig(), **options: Any
) -> Evaluation | SeedsEvaluation:
    """`evaluate_seeds` of a folder of several runs, `evaluate` of anything else."""
    return (evaluate_seeds if seed_runs(model) else evaluate)(model, data, config, **options)


def check_arguments(model: str | Path, data: str | Path, verb: str = "evaluate") -> None:
    """RunError or DataNotFound where MODEL or DATA is something else that has its place on the command line."""
    if _is_cache(model):
        raise RunError(f"{model} is a cache, no student: name a run folder or an exported file; the cache is --cache's")
    if _is_cache(data):
        raise DataNotFound(f"{data} is a cache, no folder of images: the order is MODEL DATA, the cache is --cache's")
    if Path(model).is_dir() and not _is_model(model) and _is_model(data):
        raise RunError(f"{model} is no student, and {data} is one: the order is `softlabel {verb} MODEL DATA`")


class _Measuring:
    """One student, and what is asked of it."""

    def __init__(self, answering: Answering, config: EvaluateConfig) -> None:
        self._answering, self._config = answering, config

    def evaluation(self, model: str, notices: tuple[str, ...]) -> Evaluation:
        """All that was asked for; what the user got wrong is said before any image is looked at."""
        answering, config = self._answering, self._config
        wanted = list(answering.splits) if config.split == "all" else [config.split]
        chooser = self._chooser()
        splits = wanted if chooser is None or chooser in wanted else [*wanted, chooser]
        for split in splits:
            answering.labels(split)
        questions = self._questions([sample for split in wanted for sample in answering.samples(split)])
        answers = {split: answering.answers(split) for split in splits}
        found = {}
        for split in wanted:
            thresholds_from = None if chooser in (None, split) else answers[str(chooser)]
            found[split] = evaluate_split(answers[split], answering.classes, questions, thresholds_from)
        leaks = (self._leak(split, questions.group_of) for split in wanted if questions.group_of is not None)
        said = (*notices, *(leak for leak in leaks if leak))
        for notice in said:
            log.info("notice   %s", notice)
        return Evaluation(model=model, classes=answering.classes, splits=found, notices=said)

    def _leak(self, split: str, group_of: Mapping[bytes, str]) -> str:
        """What to say where images of a split share their group with one that the student learned from."""
        learned = self._answering.learned or frozenset()
        met = {group_of[key] for key in learned if key in group_of}
        samples = self._answering.samples(split)
        shared = [sample for sample in samples if sample.key not in learned and group_of[sample.key] in met]
        if not shared:
            return ""
        return (
            f"{len(shared):,} of {len(samples):,} {split} images share their {self._config.group_column} with one that "
            f"the student learned from (first: {shared[0].name}): their scores are too good for new ones"
        )

    def _chooser(self) -> str | None:
        """The split that chooses the thresholds; None where each chooses its own."""
        has_val = "val" in self._answering.splits
        if not self._config.sensitivity_of or self._config.threshold_from == "same":
            return None
        if not has_val and self._config.threshold_from == "val":
            raise DataNotFound(
                f"--threshold-from val: there is no val split, only {', '.join(self._answering.splits)}; "
                "--threshold-from same chooses on the images that are measured"
            )
        return "val" if has_val else None

    def _questions(self, samples: Sequence[Sample]) -> Questions:
        config = self._config
        questions = Questions(
            n_resamples=config.n_resamples, seed=config.seed,
            sensitivity_of=config.sensitivity_of, at_specificity=config.at_specificity,
        )  # fmt: skip
        if config.csv is None:
            return questions
        if config.group_column is not None:
            _check_known(samples, self._column(config.csv, config.group_column, samples), config)
            groups = self._column(config.csv, config.group_column, samples, is_required=True)
            questions = replace(questions, group_of=groups, unit=config.group_column)
        subgroups = {}
        for column in config.subgroup_columns:
            value_of = self._column(config.csv, column, samples)
            keys = [sample.key for sample in samples]
            names, order = name_values(column, [value_of.get(key, "") for key in keys])
            subgroups[column] = (dict(zip(keys, names, strict=True)), order)
        return replace(questions, subgroups=subgroups)

    def _column(
        self, csv: Path, column: str, samples: Sequence[Sample], *, is_required: bool = False
    ) -> dict[bytes, str]:
        """What the table says of every image; BadSamples where it knows none of these, or not all that it must.

        The images of other splits are looked up, too: a row is not to be taken for the one of a namesake.
        """
        keys = {sample.key for sample in samples}
        found = read_groups(
            self._answering.every_sample, csv, column, self._config.image_column,
            required=lambda sample: is_required and sample.key in keys,
        )  # fmt: skip
        if not keys & set(found):
            raise BadSamples(
                f"{csv} has a {column} for none of the {len(samples):,} images (first: {samples[0].name}): "
                "is it the table of other images? Is --image-column another one?"
            )
        return found


def _notices(student: Student) -> tuple[str, ...]:
    """What a reader of the scores must know of the run."""
    if student.run is None:
        return ()
    try:
        student.run.check_finished()
    except RunError as interrupted:
        return (f"these are the scores of the best student so far: {interrupted}",)
    return ()


def _check_known(samples: Sequence[Sample], found: Mapping[bytes, str], config: EvaluateConfig) -> None:
    """BadSamples where the table knows no image of a whole split."""
    known = {sample.split for sample in samples if sample.key in found}
    if unknown := {sample.split for sample in samples} - known:
        raise BadSamples(
            f"{config.csv} has a {config.group_column} for no image of {', '.join(sorted(unknown))}: "
            f"evaluate --split {min(known)} alone, or name a table of all images"
        )


def _is_cache(path: str | Path) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(8) == b"\x89HDF\r\n\x1a\n"
    except OSError:
        return False


def _is_model(path: str | Path) -> bool:
    folder = Path(path)
    return folder.is_file() or any((folder / name).exists() for name in ("best.pt", "last.pt")) or bool(seed_runs(path))
