"""The folder of an evaluation: scores, tables and figures of each split, all of them or nothing.

Computes nothing. Run: softlabel evaluate RUN DATA -o FOLDER
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cache import durable
from pipeline.errors import OutputExists
from pipeline.metrics.bootstrap import Interval
from pipeline.metrics.evaluation import (
    Answers,
    AnyEvaluation,
    Evaluation,
    SeedsEvaluation,
    SplitEvaluation,
    Spread,
    TasksEvaluation,
    TasksSeedsEvaluation,
)
from pipeline.metrics.figures import confusion_figure, png, reliability_figure
from pipeline.metrics.full import PER_CLASS, probabilities
from pipeline.metrics.subgroups import SCORES
from pipeline.outputs import check_output_folder

_LONGEST_FOLDER_NAME = 80


def check_new_folder(out: str | Path) -> None:
    """OutputExists where `out` holds anything, SettingError where it cannot be a folder."""
    check_output_folder(out)
    if Path(out).is_dir() and any(Path(out).iterdir()):
        raise OutputExists(f"{out} is not empty: choose another -o, or delete it")


def write_evaluation(out: str | Path, evaluation: AnyEvaluation) -> None:
    """Write FOLDER/<split>/*, with several seeds FOLDER/<seed>/<split>/*, and the whole as FOLDER/metrics.json.

    Of several tasks all but the last in FOLDER/<task>. The folder appears when it is whole. OutputExists where it is
    not empty.
    """
    check_new_folder(out)
    final = Path(out).absolute()
    unfinished = durable.temp_name(final)
    try:
        with durable.disk_errors(final, 1):
            unfinished.mkdir(parents=True)
        if isinstance(evaluation, TasksEvaluation | TasksSeedsEvaluation):
            names = folder_names(evaluation.tasks)
            for task, of_task in evaluation.tasks.items():
                _write_task(unfinished / names[task], of_task)
        else:
            _write_task(unfinished, evaluation)
        if isinstance(evaluation, TasksSeedsEvaluation):
            seeds = next(iter(evaluation.tasks.values())).seeds
            durable.write_atomic(unfinished / "seeds.csv", _seeds_csv(evaluation.mean, seeds))
        durable.write_atomic(unfinished / "metrics.json", json_bytes(evaluation.to_dict()))
        with durable.disk_errors(final, 1):
            with suppress(FileNotFoundError):
                final.rmdir()  # an empty one
            durable.publish_replace(unfinished, final)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def json_bytes(value: Any) -> bytes:
    """JSON text that every reader takes: no NaN."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def folder_names(tasks: Iterable[str]) -> dict[str, str]:
    """Task -> a folder's name on any system, each another one: letters, digits, blanks and - of it, _ for others."""
    found = dict[str, str]()
    for task in tasks:
        name = re.sub(r"[^\w -]", "_", task).strip()[:_LONGEST_FOLDER_NAME] or "_"
        while name.casefold() in {other.casefold() for other in found.values()}:
            name += "_"
        found[task] = name
    return found


def _write_task(folder: Path, evaluation: Evaluation | SeedsEvaluation) -> None:
    if not isinstance(evaluation, SeedsEvaluation):
        _write_splits(folder, evaluation)
        return
    for name, one in evaluation.seeds.items():
        _write_splits(folder / name, one)
    durable.write_atomic(folder / "seeds.csv", _seeds_csv(evaluation.spread, evaluation.seeds))


def _write_splits(folder: Path, evaluation: Evaluation) -> None:
    for name, split in evaluation.splits.items():
        with durable.disk_errors(folder / name, 1):
            (folder / name).mkdir(parents=True)
        for file, content in split_files(split, evaluation.classes):
            durable.write_atomic(folder / name / file, content)


def split_files(split: SplitEvaluation, classes: Sequence[str]) -> Iterable[tuple[str, bytes]]:
    """(file name, content) of everything that is written of a split."""
    metrics = split.student.metrics
    title = f"{split.answers.split}: {metrics.n_samples:,} images, balanced accuracy {metrics.balanced_accuracy:.3f}"
    yield "metrics.json", json_bytes({"classes": list(classes), **split.to_dict()})
    yield "confusion.csv", _csv([["true \\ predicted", *classes], *_named(classes, metrics.confusion)])
    yield "confusion.png", png(confusion_figure(metrics.confusion, classes, title))
    yield "reliability.png", png(reliability_figure(metrics, f"{split.answers.split}: {metrics.n_samples:,} images"))
    yield "per_class.csv", _per_class_csv(split)
    if split.subgroups:
        yield "subgroups.csv", _subgroups_csv(split)
    yield "predictions.csv", predictions_csv(split.answers, classes)


def predictions_csv(answers: Answers, classes: Sequence[str]) -> bytes:
    """A row an image: name relative to the data folder, content key, label, prediction, probabilities (p_<class>).

    `learned` is 1 where the student learned from the image, and empty where nobody knows.
    """
    rows: list[list[Any]] = [["name", "key", "label", "predicted", "learned", *(f"p_{name}" for name in classes)]]
    said = answers.student_NC.argmax(axis=1)
    for i, row in enumerate(probabilities(answers.student_NC).tolist()):
        learned = "" if answers.learned_N is None else int(answers.learned_N[i])
        label, predicted = classes[answers.labels_N[i]], classes[said[i]]
        rows.append([answers.names[i], answers.keys[i].hex(), label, predicted, learned, *(f"{p:.6g}" for p in row)])
    return _csv(rows)


def _per_class_csv(split: SplitEvaluation) -> bytes:
    with_intervals = [column for score in PER_CLASS for column in (score, f"{score}_low", f"{score}_high")]
    teacher = [f"teacher_{score}" for score in PER_CLASS] if split.teacher else []
    rows: list[list[Any]] = [["class", "images", *with_intervals, *teacher]]
    for name, scores in split.student.metrics.per_class.items():
        intervals = split.student.class_intervals.get(name, {})
        cells = [cell for score in PER_CLASS for cell in _cells(scores[score], intervals.get(score))]
        beside = [split.teacher.metrics.per_class[name][score] for score in PER_CLASS] if split.teacher else []
        rows.append([name, scores["support"], *cells, *map(_cell, beside)])
    return _csv(rows)


def _subgroups_csv(split: SplitEvaluation) -> bytes:
    columns = [column for score in SCORES for column in (score, f"{score}_low", f"{score}_high")]
    rows: list[list[Any]] = [["column", "value", "images", "correct", "classes", "small", *columns]]
    for one in split.subgroups:
        cells = [cell for score in SCORES for cell in _cells(getattr(one, score), one.intervals.get(score))]
        rows.append([one.column, one.value, one.n_images, one.n_correct, one.n_classes, int(one.is_small), *cells])
    return _csv(rows)


def _seeds_csv(spread: Mapping[str, Mapping[str, Spread]], seeds: Iterable[str]) -> bytes:
    rows: list[list[Any]] = [["split", "score", "mean", "std", *seeds]]
    for split, scores in spread.items():
        for score, found in scores.items():
            rows.append([split, score, _cell(found.mean), _cell(found.std), *map(_cell, found.values)])
    return _csv(rows)


def _named(classes: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[list[Any]]:
    return [[name, *row] for name, row in zip(classes, matrix, strict=True)]


def _cells(value: float | None, interval: Interval | None) -> tuple[str, str, str]:
    return _cell(value), _cell(interval.low if interval else None), _cell(interval.high if interval else None)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _csv(rows: Iterable[Sequence[Any]]) -> bytes:
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows(rows)
    return table.getvalue().encode("utf-8", "surrogateescape")
