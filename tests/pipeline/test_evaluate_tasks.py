"""Measuring a student of two tasks: each by itself on the images that have its label, and the means of both."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.special import softmax

from data.errors import DataNotFound
from data.options import ScanOptions
from data.scan import scan_data
from pipeline.answers import Answering
from pipeline.errors import RunError, SettingError
from pipeline.evaluate import EvaluateConfig, evaluate, evaluate_any, evaluate_tasks
from pipeline.inference import load_student
from pipeline.metrics import files
from pipeline.metrics.evaluation import TasksEvaluation, TasksSeedsEvaluation
from pipeline.metrics.sensitivity import group_of_task

from .conftest import TwoTasks

Cli = Callable[..., tuple[int, str, str]]
FAST = EvaluateConfig(split="test", n_resamples=40)


@pytest.fixture(scope="module")
def evaluation(two_tasks: TwoTasks, tiny_data: Path) -> TasksEvaluation:
    config = dataclasses.replace(FAST, split="all")
    return evaluate_tasks(two_tasks.run, tiny_data, config, scan=two_tasks.scan, workers=0)


def n_labelled(data: Path, scan: ScanOptions, split: str) -> dict[str, int]:
    samples = scan_data(data, scan).of_split(split)
    return {task: sum(task in sample.labels for sample in samples) for task in ("dx", "tone")}


def test_each_task_is_measured_on_the_images_that_have_its_label(
    evaluation: TasksEvaluation, two_tasks: TwoTasks, tiny_data: Path
) -> None:
    for split in ("train", "val", "test"):
        measured = {task: one.splits[split].student.metrics.n_samples for task, one in evaluation.tasks.items()}
        assert measured == n_labelled(tiny_data, two_tasks.scan, split)
    assert evaluation.tasks["tone"].classes == ("dark", "pale")
    assert "of 15 test images have no label of tone and are left out" in evaluation.tasks["tone"].notices[0]
    for one in evaluation.tasks.values():
        assert one.splits["test"].teacher is not None
        assert one.splits["train"].n_learned == one.splits["train"].student.metrics.n_samples


def test_answers_of_a_task_are_its_columns_of_the_same_logits(two_tasks: TwoTasks, tiny_data: Path) -> None:
    images = scan_data(tiny_data, two_tasks.scan)
    found = Answering(load_student(two_tasks.run, "cpu"), images, None, 0, two_tasks.scan).answers("test")
    assert {task: one.student_NC.shape[1] for task, one in found.items()} == {"dx": 5, "tone": 2}
    label_of = {sample.key: sample.labels for sample in images.samples}
    for task, one in found.items():
        said = [images.classes[task][label] for label in one.labels_N]
        assert said == [label_of[key][task] for key in one.keys]


def test_the_means_are_those_of_the_tasks(evaluation: TasksEvaluation) -> None:
    of_tasks = [one.splits["test"].student.metrics.macro_f1 for one in evaluation.tasks.values()]
    assert evaluation.mean["test"].student["macro_f1"] == pytest.approx(sum(of_tasks) / 2)
    assert evaluation.mean["test"].teacher is not None
    described = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert list(described) == ["model", "notices", "tasks", "mean"]
    assert described["tasks"]["dx"]["splits"]["val"]["student"]["per_class"].keys() == set(
        evaluation.tasks["dx"].classes
    )
    assert described["mean"]["val"]["student"].keys() == {
        "accuracy", "balanced_accuracy", "macro_f1", "macro_auroc",
    }  # fmt: skip


def test_the_validation_of_the_best_epoch_is_what_is_measured_on_val(
    evaluation: TasksEvaluation, two_tasks: TwoTasks
) -> None:
    with (two_tasks.run / "metrics.csv").open(newline="") as file:
        best = max(csv.DictReader(file), key=lambda row: float(row["val_macro_f1"]))
    for task, one in evaluation.tasks.items():
        assert one.splits["val"].student.metrics.macro_f1 == pytest.approx(float(best[f"{task}/val_macro_f1"]))
    assert evaluation.mean["val"].student["macro_f1"] == pytest.approx(float(best["val_macro_f1"]))


def test_the_table_has_a_heading_for_each_task_and_ends_with_the_means(evaluation: TasksEvaluation) -> None:
    lines = evaluation.to_table().splitlines()
    headings = [lines[at - 1] for at, line in enumerate(lines) if line and set(line) == {"="}]
    assert headings == ["dx", "tone", "mean over dx, tone"]


def test_data_without_one_of_the_tasks_measure_the_other(
    two_tasks: TwoTasks, tiny_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scan = dataclasses.replace(two_tasks.scan, label_columns=("tone",))
    with caplog.at_level(logging.INFO):
        found = evaluate_tasks(two_tasks.run, tiny_data, FAST, scan=scan, workers=0)
    assert list(found.tasks) == ["tone"]
    assert not found.is_single
    assert "has no labels of dx: tone alone" in caplog.text


def test_a_split_without_labels_of_a_task_measures_the_others(
    two_tasks: TwoTasks, tiny_data: Path, tmp_path: Path
) -> None:
    assert two_tasks.scan.csv is not None
    rows = list(csv.reader(two_tasks.scan.csv.read_text().splitlines()))
    bare = [[*row[:2], "" if row[3] in ("val", "test") else row[2], *row[3:]] for row in rows]
    (tmp_path / "t.csv").write_text("\n".join(map(",".join, bare)))
    scan = dataclasses.replace(two_tasks.scan, csv=tmp_path / "t.csv")
    found = evaluate_tasks(two_tasks.run, tiny_data, FAST, scan=scan, workers=0)
    assert list(found.tasks) == ["dx"]
    assert found.notices == ("15 of 15 test images have no label of tone and are left out",)
    asked = dataclasses.replace(FAST, split="train", sensitivity_of=("pale",), threshold_from="val")
    with pytest.raises(DataNotFound, match="--threshold-from val: no val image has a label of tone; --threshold-from"):
        evaluate_tasks(two_tasks.run, tiny_data, asked, scan=scan)


def test_data_of_other_tasks_name_both(two_tasks: TwoTasks, tiny_data: Path, tiny_run: Path) -> None:
    with pytest.raises(RunError, match=r"the student answers dx, tone, and .* has labels of class$"):
        evaluate_tasks(two_tasks.run, tiny_data, FAST)
    with pytest.raises(
        RunError, match=r"the student answers class, and .* of dx, tone; name the one .* --label-column"
    ):
        evaluate_tasks(tiny_run, tiny_data, FAST, scan=two_tasks.scan)


def test_a_run_of_folders_is_measured_on_a_label_column_whatever_that_is_called(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    images = scan_data(tiny_data)
    rows = [
        f"{one.name},{one.labels['class'] if at else ''},{one.split}" for at, one in enumerate(images.samples[-15:])
    ]
    (tmp_path / "t.csv").write_text("\n".join(["path,diagnosis,split", *rows]))
    scan = ScanOptions(csv=tmp_path / "t.csv", label_columns=("diagnosis",), split_column="split")
    found = evaluate(tiny_run, tiny_data, FAST, scan=scan, workers=0)
    assert found.splits["test"].student.metrics.n_samples == 14
    assert found.splits["test"].teacher is not None
    assert found.notices == ("1 of 15 test images have no label and are left out",)
    with pytest.raises(DataNotFound, match="in split 'val'; it has: test"):
        evaluate(tiny_run, tiny_data, dataclasses.replace(FAST, split="val"), scan=scan)


def test_a_class_that_nobody_taught_is_named_with_its_task(
    two_tasks: TwoTasks, tiny_data: Path, tmp_path: Path
) -> None:
    assert two_tasks.scan.csv is not None
    (tmp_path / "t.csv").write_text(two_tasks.scan.csv.read_text().replace(",pale,", ",rosy,"))
    with pytest.raises(RunError, match="does not know the classes rosy of tone; it knows dark, pale"):
        evaluate_tasks(two_tasks.run, tiny_data, FAST, scan=dataclasses.replace(two_tasks.scan, csv=tmp_path / "t.csv"))


def test_one_evaluation_of_two_tasks_is_refused(two_tasks: TwoTasks, tiny_data: Path) -> None:
    with pytest.raises(RunError, match="answers several tasks: evaluate_tasks measures each of dx, tone"):
        evaluate(two_tasks.run, tiny_data, FAST, scan=two_tasks.scan)


def test_the_classes_of_a_sensitivity_are_of_the_task_that_knows_them(two_tasks: TwoTasks, tiny_data: Path) -> None:
    def points(*group: str) -> dict[str, bool]:
        config = dataclasses.replace(FAST, sensitivity_of=group)
        found = evaluate_tasks(two_tasks.run, tiny_data, config, scan=two_tasks.scan, workers=0)
        return {task: one.splits["test"].student.sensitivity is not None for task, one in found.tasks.items()}

    assert points("vascular lesion", "melanoma") == {"dx": True, "tone": False}
    assert points("tone: dark") == {"dx": False, "tone": True}
    with pytest.raises(SettingError, match=r"no task knows all of 'pale', 'melanoma'\. .*; tone: dark, pale$"):
        points("pale", "melanoma")


def test_a_class_of_two_tasks_is_named_with_its_task() -> None:
    tasks = {"dx": ("dark", "nevus", "other"), "tone": ("dark", "pale")}
    assert group_of_task(("dark", "nevus"), tasks) == ("dx", ("dark", "nevus"))
    assert group_of_task(("tone: dark",), tasks) == ("tone", ("dark",))
    with pytest.raises(SettingError, match="dx and tone both know 'dark': say which, such as 'dx: dark'"):
        group_of_task(("dark",), tasks)
    with pytest.raises(SettingError, match="--sensitivity-of"):
        group_of_task(("dark", "pale"), tasks)


def test_groups_and_subgroups_are_for_every_task(two_tasks: TwoTasks, tiny_data: Path) -> None:
    config = dataclasses.replace(
        FAST, csv=two_tasks.scan.csv, group_column="patient", subgroup_columns=("split",), image_column="path"
    )
    found = evaluate_tasks(two_tasks.run, tiny_data, config, scan=two_tasks.scan, workers=0)
    for one in found.tasks.values():
        split = one.splits["test"]
        assert (split.unit, split.n_units) == ("patient", 8)
        assert [group.n_images for group in split.subgroups] == [split.student.metrics.n_samples]


def test_seeds_have_a_spread_for_each_task_and_for_the_means(
    two_tasks: TwoTasks, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "png", lambda figure: b"")  # a second each, and drawn elsewhere
    for seed in (0, 1):
        shutil.copytree(two_tasks.run, tmp_path / "runs" / f"seed-{seed}")
    found = evaluate_any(tmp_path / "runs", tiny_data, FAST, scan=two_tasks.scan, workers=0)
    assert isinstance(found, TasksSeedsEvaluation)
    assert found.tasks["dx"].spread["test"].keys() >= {"accuracy", "agreement"}
    assert "mean over dx, tone" in found.to_table()
    files.write_evaluation(tmp_path / "scores", found)
    names = {path.relative_to(tmp_path / "scores").as_posix() for path in (tmp_path / "scores").rglob("*")}
    assert {"tone/seed-1/test/predictions.csv", "dx/seeds.csv", "seeds.csv", "metrics.json"} <= names
    described = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert described["mean"]["test"]["macro_f1"]["std"] == 0
    assert list(described["tasks"]) == ["dx", "tone"]


def test_the_command_writes_a_folder_for_each_task(
    cli: Cli, two_tasks: TwoTasks, tiny_data: Path, tmp_path: Path
) -> None:
    words = (two_tasks.run, tiny_data, *two_tasks.words, "--split", "test")
    code, out, err = cli("evaluate", *words, "-o", tmp_path / "scores", "--json", tmp_path / "e.json")
    assert code == 0, err
    assert "tone\n====\n\ntest: " in out
    assert (tmp_path / "scores" / "dx" / "test" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "scores" / "metrics.json").read_bytes() == (tmp_path / "e.json").read_bytes()
    code, out, err = cli("evaluate", *words, "--sensitivity-of", "melanoma,pale")
    assert (code, out, "no task knows all of 'melanoma', 'pale'" in err) == (1, "", True)


def test_folders_have_names_that_every_system_takes() -> None:
    names = files.folder_names(["a/b", "a:b", "A_b", "..", "metrics.json", "gr\u00f6\u00dfe 1"])
    assert list(names.values()) == ["a_b", "a_b_", "A_b__", "__", "metrics_json", "gr\u00f6\u00dfe 1"]


def test_a_single_task_is_evaluated_as_ever_by_either_function(tiny_run: Path, tiny_data: Path) -> None:
    alone = evaluate(tiny_run, tiny_data, FAST, workers=0)
    assert evaluate_tasks(tiny_run, tiny_data, FAST, workers=0).tasks["class"].to_dict() == alone.to_dict()
    found = evaluate_any(tiny_run, tiny_data, FAST, workers=0)
    assert found.to_dict() == alone.to_dict()
    assert not isinstance(found, TasksEvaluation | TasksSeedsEvaluation)


def test_predictions_are_a_class_and_probabilities_for_each_task(
    cli: Cli, two_tasks: TwoTasks, tiny_data: Path
) -> None:
    paths = sorted(tiny_data.glob("test/*/*.png"))[:2]
    code, out, err = cli("predict", two_tasks.run, *paths)
    assert code == 0, err
    header, *rows = list(csv.reader(out.splitlines()))
    assert header[:3] == ["image", "dx", "tone"]
    assert header[3:] == list(load_student(two_tasks.run, "cpu").card.classes)
    for path, row in zip(paths, rows, strict=True):
        assert row[0] == str(path)
        likely = {"dx": range(3, 8), "tone": range(8, 10)}
        for said, (task, places) in zip(row[1:3], likely.items(), strict=True):
            assert sum(float(row[at]) for at in places) == pytest.approx(1, abs=1e-3)
            assert header[max(places, key=lambda at: float(row[at]))] == f"{task}: {said}"


def test_probabilities_of_a_task_are_the_softmax_of_its_own_columns(two_tasks: TwoTasks, tiny_data: Path) -> None:
    from pipeline.predict import predict

    images = scan_data(tiny_data, two_tasks.scan)
    answers = Answering(load_student(two_tasks.run, "cpu"), images, None, 0, two_tasks.scan).answers("test")["tone"]
    (found,) = predict(two_tasks.run, [tiny_data / answers.names[0]])
    expected = softmax(answers.student_NC[0].astype(float))
    assert [found.probabilities[f"tone: {name}"] for name in ("dark", "pale")] == pytest.approx(expected.tolist())
