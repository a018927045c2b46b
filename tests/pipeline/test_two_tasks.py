"""A student of two tasks from its last epoch on: verdicts, report, export, a start for others, a teacher."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cache import CacheReader
from data.scan import scan_data
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import SettingError
from pipeline.export import export
from pipeline.inference import load_student
from pipeline.predict import predict
from pipeline.report.content import shown_samples
from pipeline.report.gather import gather
from pipeline.report.page import render_report
from pipeline.train import TrainConfig, train
from pipeline.training.facts import Run
from pipeline.training.rows import chosen_by, rows_of_task

from .conftest import TwoTasks

ONE_EPOCH = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=1, batch_size=8)


def test_the_page_of_a_training_is_that_of_the_command_task_by_task(two_tasks: TwoTasks, tiny_data: Path) -> None:
    content = gather(two_tasks.run, tiny_data, scan=two_tasks.scan, workers=0)
    html = render_report(content)
    assert html == (two_tasks.run / "report.html").read_text(encoding="utf-8")
    for words in (
        "2 tasks (dx with 5, tone with 2 classes)", "<h2>Scores on val, dx: ", "<h2>Scores on val, tone: ",
        "<h2>Tasks</h2>", "mean of 2 tasks", "Validation macro F1 of each task",
    ):  # fmt: skip
        assert words in html
    assert {verdict.line.split(": ")[0] for verdict in content.verdicts} == {"dx", "tone"}


def test_pictures_are_of_what_any_task_shows(two_tasks: TwoTasks, tiny_data: Path) -> None:
    content = gather(two_tasks.run, tiny_data, split="test", scan=two_tasks.scan, with_images=True, workers=0)
    shown = {one.keys[n] for one in content.answers.values() for group in shown_samples(one) for n in group.numbers}
    assert content.pictures.keys() == shown


def test_the_best_row_of_a_task_is_of_the_epoch_that_the_run_chose() -> None:
    """Task a is best in epoch 2, b in epoch 3, their mean in epoch 3."""
    scores = {"a": (0.1, 0.6, 0.5), "b": (0.2, 0.3, 0.9)}
    rows = [
        {"epoch": at + 1, "val_macro_f1": (a + b) / 2, "a/val_macro_f1": a, "b/val_macro_f1": b}
        for at, (a, b) in enumerate(zip(*scores.values(), strict=True))
    ]
    for best_by, epoch in (("mean", 3), ("a", 2), ("b", 3)):
        for task, values in scores.items():
            best = Run(rows_of_task(rows, task, 2, best_by), {}, None, None).best
            assert (best["epoch"], best["val_macro_f1"]) == (epoch, values[epoch - 1])


def test_a_run_of_other_tasks_is_a_start_and_one_task_may_choose_the_epoch(
    two_tasks: TwoTasks, tiny_run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"workers": 0, "scan": two_tasks.scan, "anyway": True, "report": False}
    config = dataclasses.replace(ONE_EPOCH, init=str(tiny_run), best_by="tone")
    with caplog.at_level("INFO"):
        result = train(tiny_data, two_tasks.cache, tmp_path / "run", config, **options)
    assert "the classifier starts at random: that one is for 5 classes, here are 7" in caplog.text
    with (result.path / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert result.best_macro_f1 == pytest.approx(float(row["tone/val_macro_f1"]))
    config = dataclasses.replace(ONE_EPOCH, best_by="tune")
    with pytest.raises(SettingError, match="best_by must be mean or dx or tone, got 'tune'; did you mean 'tone'"):
        train(tiny_data, two_tasks.cache, tmp_path / "other", config, **options)


def test_the_only_task_of_a_run_may_be_named_to_choose_the_epoch() -> None:
    assert chosen_by({"val_macro_f1": 0.5}, "class") == chosen_by({"val_macro_f1": 0.5}, "mean") == 0.5


def test_the_exported_file_says_the_same_of_both_tasks(two_tasks: TwoTasks, tiny_data: Path, tmp_path: Path) -> None:
    export(two_tasks.run, tmp_path / "m.pt")
    paths = sorted(tiny_data.glob("test/*/*.png"))[:3]
    for one, other in zip(predict(two_tasks.run, paths), predict(tmp_path / "m.pt", paths), strict=True):
        assert one.labels == other.labels
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    extra = {"softlabel.json": ""}
    with pytest.warns((DeprecationWarning, FutureWarning)):
        model = torch.jit.load(str(tmp_path / "m.pt"), _extra_files=extra)
    card = json.loads(extra["softlabel.json"])
    assert list(card["tasks"]) == ["dx", "tone"]
    assert card["classes"] == [f"{task}: {name}" for task, names in card["tasks"].items() for name in names]
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, len(card["classes"]))


def test_a_student_of_two_tasks_teaches_both(
    two_tasks: TwoTasks, tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    build = dataclasses.replace(tiny_build, teacher=str(two_tasks.run), views=1)
    reader = CacheReader(build_cache(tiny_data, tmp_path / "t.h5", build, two_tasks.scan).path)
    images = scan_data(tiny_data, two_tasks.scan)
    assert {task: tuple(names) for task, names in reader.tasks.items()} == dict(images.classes)
    sample = next(sample for sample in images.samples if sample.split == "test")
    (found,) = predict(two_tasks.run, [sample.path])
    rows = reader.row(reader.find([sample.key]), 0)
    for task, names in images.classes.items():
        assert names[int(reader.logits(rows, task)[0].argmax())] == found.labels[task]
    taught = train(
        tiny_data, reader.path, tmp_path / "run", ONE_EPOCH, workers=0, scan=two_tasks.scan, anyway=True, report=False
    )
    assert list(load_student(taught.path, "cpu").card.tasks) == ["dx", "tone"]
