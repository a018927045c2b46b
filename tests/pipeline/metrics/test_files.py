"""The folder of an evaluation: whole or not there, never in the place of another one."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cache.errors import CacheDiskFull
from pipeline.errors import OutputExists, SettingError
from pipeline.metrics.evaluation import Evaluation, SeedsEvaluation
from pipeline.metrics.files import check_new_folder, predictions_csv, write_evaluation
from pipeline.metrics.scoring import Questions, evaluate_split, spread_over_seeds

from .answering import answers, drawn

CLASSES = ("bcc", "mel, in situ", "nv")


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    test = answers(drawn(0, 30, 3), teacher=drawn(1, 30, 3)[0])
    sex = {key: "male" if i % 4 else "female" for i, key in enumerate(test.keys)}
    asked = Questions(n_resamples=60, subgroups={"sex": (sex, ["male", "female"])})
    return Evaluation(model="m", classes=CLASSES, splits={"test": evaluate_split(test, CLASSES, asked)})


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_split_has_its_scores_tables_figures_and_predictions(evaluation: Evaluation, tmp_path: Path) -> None:
    write_evaluation(tmp_path / "scores", evaluation)
    folder, split = tmp_path / "scores" / "test", evaluation.splits["test"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.csv", "confusion.png", "metrics.json", "per_class.csv", "predictions.csv", "reliability.png",
        "subgroups.csv",
    ]  # fmt: skip
    assert json.loads((folder / "metrics.json").read_text())["student"]["accuracy"] == split.student.metrics.accuracy
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text()) == json.loads(
        json.dumps(evaluation.to_dict())
    )
    matrix = [[int(row[name]) for name in CLASSES] for row in rows(folder / "confusion.csv")]
    assert matrix == split.student.metrics.confusion
    per_class = rows(folder / "per_class.csv")
    assert [row["class"] for row in per_class] == list(CLASSES)
    assert float(per_class[1]["recall_low"]) <= float(per_class[1]["recall"]) <= float(per_class[1]["recall_high"])
    assert "teacher_auroc" in per_class[0]
    assert [(row["value"], row["images"], row["small"]) for row in rows(folder / "subgroups.csv")] == [
        ("male", "22", "0"), ("female", "8", "1"),
    ]  # fmt: skip
    assert rows(folder / "subgroups.csv")[1]["accuracy"] == ""


def test_a_prediction_is_joined_by_relative_name_or_key(evaluation: Evaluation) -> None:
    test = evaluation.splits["test"].answers
    first = list(csv.DictReader(io.StringIO(predictions_csv(test, CLASSES).decode())))[3]
    assert (first["name"], first["key"]) == (test.names[3], test.keys[3].hex())
    assert first["label"] == CLASSES[test.labels_N[3]]
    shares = {name: float(first[f"p_{name}"]) for name in CLASSES}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert max(shares, key=lambda name: shares[name]) == first["predicted"]
    assert first["learned"] == "0"
    unknown = predictions_csv(dataclasses.replace(test, learned_N=None), CLASSES).decode()
    assert {row["learned"] for row in csv.DictReader(io.StringIO(unknown))} == {""}


def test_seeds_have_a_folder_each_and_one_table(evaluation: Evaluation, tmp_path: Path) -> None:
    seeds = {"seed-0": evaluation, "seed-1": evaluation}
    spread = spread_over_seeds(list(seeds.values()))
    write_evaluation(tmp_path / "s", SeedsEvaluation(model="m", seeds=seeds, spread=spread))
    assert (tmp_path / "s" / "seed-1" / "test" / "predictions.csv").exists()
    accuracy = next(row for row in rows(tmp_path / "s" / "seeds.csv") if row["score"] == "accuracy")
    assert float(accuracy["std"]) == 0
    assert accuracy["seed-0"] == accuracy["seed-1"] == accuracy["mean"]


def test_an_empty_folder_is_filled_and_any_other_refused(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_evaluation(tmp_path / "empty", evaluation)
    with pytest.raises(OutputExists, match="is not empty: choose another -o, or delete it"):
        check_new_folder(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingError, match="is a file"):
        check_new_folder(tmp_path / "file")


def test_a_full_disk_leaves_nothing_behind(
    evaluation: Evaluation, tmp_path: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    with file_limit(3000), pytest.raises(CacheDiskFull, match="no room for"):
        write_evaluation(tmp_path / "scores", evaluation)
    assert list(tmp_path.iterdir()) == []
