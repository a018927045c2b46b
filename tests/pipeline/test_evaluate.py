"""Measuring a student: a run folder and its export alike, the teacher beside it where the cache has the images."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cache import CacheError
from data.errors import BadSamples, DataNotFound
from data.scan import scan_data
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import RunError, SettingError
from pipeline.evaluate import EvaluateConfig, evaluate, evaluate_any, evaluate_seeds
from pipeline.export import export
from pipeline.metrics.evaluation import Evaluation, SeedsEvaluation, SplitEvaluation
from pipeline.runs import seed_runs

FAST = EvaluateConfig(split="test", n_resamples=40)


def on_test(run: Path, data: Path, config: EvaluateConfig = FAST, **options: Any) -> SplitEvaluation:
    """A model on the split test."""
    return evaluate(run, data, config, workers=0, **options).splits["test"]


def table_of(data: Path, path: Path, value: Callable[[str, int], str]) -> Path:
    """A CSV with a row an image; `value` of (split, number of the image in it)."""
    numbers: dict[str, int] = {}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "lesion", "sex"])
        for sample in scan_data(data).samples:
            at = numbers[sample.split] = numbers.get(sample.split, -1) + 1
            writer.writerow([sample.name, value(sample.split, at), "male" if at % 3 else ""])
    return path


@pytest.fixture(scope="module")
def evaluation(tiny_run: Path, tiny_data: Path) -> Evaluation:
    return evaluate(tiny_run, tiny_data, dataclasses.replace(FAST, split="all"), workers=0)


def test_an_evaluation_has_the_student_the_teacher_and_their_agreement(evaluation: Evaluation) -> None:
    result = evaluation.splits["test"]
    assert result.student.metrics.n_samples == 15
    assert result.teacher is not None
    assert result.agreement is not None
    assert 0 <= result.agreement.top1 <= 1
    assert sum(map(sum, result.student.metrics.confusion)) == 15
    table = evaluation.to_table()
    for word in ("accuracy", "balanced", "macro F1", "confusion", "agreement", *evaluation.classes):
        assert word in table
    described = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert described["splits"]["test"]["student"]["per_class"].keys() == set(evaluation.classes)


def test_every_split_is_measured_and_what_was_learned_from_is_marked(evaluation: Evaluation) -> None:
    assert {name: split.student.metrics.n_samples for name, split in evaluation.splits.items()} == {
        "train": 30, "val": 15, "test": 15,
    }  # fmt: skip
    assert [split.n_learned for split in evaluation.splits.values()] == [30, 0, 0]
    assert evaluation.to_table().count("the student learned from these images") == 1


def test_an_exported_file_scores_as_its_run(tiny_run: Path, tiny_data: Path, tiny_cache: Path, tmp_path: Path) -> None:
    export(tiny_run, tmp_path / "m.pt")
    of_run, of_file = on_test(tiny_run, tiny_data), on_test(tmp_path / "m.pt", tiny_data, cache=tiny_cache)
    assert of_file.n_learned is None, "an exported file does not say"
    assert of_file.to_dict() | {"n_learned": 0} == of_run.to_dict()
    assert on_test(tmp_path / "m.pt", tiny_data).agreement is None


def test_without_a_val_split_the_images_held_out_of_train_are_one(
    tiny_run: Path, tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    run, data = shutil.copytree(tiny_run, tmp_path / "run"), shutil.copytree(tiny_data, tmp_path / "images")
    shutil.rmtree(data / "val")
    best = torch.load(run / "best.pt", weights_only=True)
    best["learned_keys"] = best["learned_keys"][:20]
    torch.save(best, run / "best.pt")
    found = evaluate(run, data, dataclasses.replace(FAST, split="all", sensitivity_of=("melanoma",)), workers=0)
    assert {name: split.student.metrics.n_samples for name, split in found.splits.items()} == {
        "train": 20, "val": 10, "test": 15,
    }  # fmt: skip
    assert [split.n_learned for split in found.splits.values()] == [20, 0, 0]
    assert "its training validated on them or some of them" in found.splits["val"].answers.source
    point = found.splits["test"].student.sensitivity
    assert point is not None
    assert point.chosen_on == "val"


def test_the_threshold_is_chosen_on_val_unless_it_is_to_be_the_same_images(tiny_run: Path, tiny_data: Path) -> None:
    asked = dataclasses.replace(FAST, sensitivity_of=("melanoma", "melanocytic nevus"), at_specificity=0.5)
    by_val, by_test = (
        on_test(tiny_run, tiny_data, dataclasses.replace(asked, threshold_from=source)).student.sensitivity
        for source in ("auto", "same")
    )
    assert by_val is not None
    assert by_test is not None
    assert (by_val.chosen_on, by_val.same_images) == ("val", False)
    assert (by_test.chosen_on, by_test.same_images) == ("test", True)
    assert by_test.specificity is not None
    assert by_test.specificity >= 0.5


def test_val_cannot_choose_where_there_is_none(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    shutil.rmtree(data / "val")
    asked = dataclasses.replace(FAST, sensitivity_of=("melanoma",))
    with pytest.raises(DataNotFound, match="--threshold-from val: there is no val split, only train, test"):
        evaluate(tiny_run, data, dataclasses.replace(asked, threshold_from="val"), workers=0)
    point = on_test(tiny_run, data, asked).student.sensitivity
    assert point is not None
    assert point.same_images


def test_intervals_draw_the_groups_of_a_table(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    table = table_of(tiny_data, tmp_path / "t.csv", lambda split, at: f"{split}-{at // 3}")
    grouped = on_test(tiny_run, tiny_data, dataclasses.replace(FAST, csv=table, group_column="lesion"))
    assert (grouped.unit, grouped.n_units) == ("lesion", 5)
    alone = on_test(tiny_run, tiny_data)
    assert (alone.unit, alone.n_units) == ("image", 15)
    assert grouped.student.metrics == alone.student.metrics
    assert grouped.student.intervals != alone.student.intervals


def test_images_of_a_group_that_the_student_learned_from_are_told(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = table_of(tiny_data, tmp_path / "t.csv", lambda split, at: f"{at}" if at < 4 else f"{split}-{at}")
    with caplog.at_level(logging.INFO):
        config = dataclasses.replace(FAST, csv=table, group_column="lesion", split="all")
        found = evaluate(tiny_run, tiny_data, config, workers=0)
    val, test = found.notices
    assert "4 of 15 val images share their lesion with one that the student learned from" in val
    assert "4 of 15 test images" in test
    assert test in caplog.text


def test_subgroups_are_those_of_the_table_with_the_missing_ones(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    table = table_of(tiny_data, tmp_path / "t.csv", lambda split, at: "x")
    found = on_test(tiny_run, tiny_data, dataclasses.replace(FAST, csv=table, subgroup_columns=("sex",))).subgroups
    assert [(one.column, one.value, one.n_images, one.is_small) for one in found] == [
        ("sex", "male", 10, False), ("sex", "(missing)", 5, True),
    ]  # fmt: skip


def test_an_image_does_not_take_the_row_of_a_namesake_in_a_split_that_is_not_measured(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    table = table_of(tiny_data, tmp_path / "t.csv", lambda split, at: "" if split == "test" and at == 0 else f"{at}")
    assert {path.name for path in tiny_data.glob("test/*/*")} < {path.name for path in tiny_data.glob("train/*/*")}
    with pytest.raises(BadSamples, match=r"to each of 1 of 60 images(.|\n)*no row, or an empty lesion"):
        on_test(tiny_run, tiny_data, dataclasses.replace(FAST, csv=table, group_column="lesion"))


def test_a_table_of_other_images_is_told(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,lesion,sex\nnothing.jpg,1,male\n")
    for options in ({"group_column": "lesion"}, {"subgroup_columns": ("sex",)}):
        config = EvaluateConfig(csv=tmp_path / "t.csv", **options)
        with pytest.raises(BadSamples, match=r"for none of the 60 images .*is it the table of other images\?"):
            evaluate(tiny_run, tiny_data, config)


def test_a_table_of_one_split_alone_says_which(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    table = table_of(tiny_data, tmp_path / "t.csv", lambda split, at: str(at) if split == "test" else "")
    config = dataclasses.replace(FAST, csv=table, group_column="lesion")
    with pytest.raises(BadSamples, match="a lesion for no image of train, val: evaluate --split test alone"):
        evaluate(tiny_run, tiny_data, dataclasses.replace(config, split="all"))
    assert on_test(tiny_run, tiny_data, config).n_units == 15


def test_a_cache_without_that_split_is_a_notice_or_an_error_when_it_was_asked_for(
    tiny_run: Path, tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    for path in data.glob("test/*/*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    assert on_test(tiny_run, data).teacher is None
    with pytest.raises(CacheError, match="knows none of the 15 images"):
        on_test(tiny_run, data, cache=tiny_cache)


def test_a_missing_split_names_those_that_are_there(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    shutil.rmtree(data / "test")
    with pytest.raises(DataNotFound, match="it has: train, val"):
        on_test(tiny_run, data)


def test_what_is_no_model_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder or model file"):
        evaluate(tmp_path / "nothing", tiny_data)
    with pytest.raises(RunError, match="is not a run folder"):
        evaluate(tmp_path, tiny_data)


def test_arguments_in_another_ones_place_are_told(tiny_run: Path, tiny_data: Path, tiny_cache: Path) -> None:
    with pytest.raises(RunError, match=r"is no student, and .* is one: the order is `softlabel evaluate MODEL DATA`"):
        evaluate(tiny_data, tiny_run)
    with pytest.raises(RunError, match=r"is a cache, no student: .*--cache's"):
        evaluate(tiny_cache, tiny_data)
    with pytest.raises(DataNotFound, match="is a cache, no folder of images: the order is MODEL DATA"):
        evaluate(tiny_run, tiny_cache)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"at_specificity": 1.5}, r"at_specificity must be in 0.01..1, got 1.5"),
        ({"n_resamples": 3}, r"n_resamples must be in 40..1e\+06, got 3"),
        ({"split": "dev"}, "split must be train or val or test or all, got 'dev'"),
        ({"threshold_from": "test"}, "threshold_from must be auto or val or same, got 'test'"),
        ({"group_column": "lesion"}, "are columns of a table: name it by --csv FILE"),
        ({"csv": Path("t.csv")}, "--csv is read for --group-column COLUMN or --subgroup-column COLUMN"),
    ],
)
def test_settings_out_of_range_show_what_they_are(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        EvaluateConfig(**settings)


def test_an_interrupted_run_says_where_it_stopped(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    last = torch.load(run / "last.pt", weights_only=True)
    last["config"]["epochs"] = 40
    torch.save(last, run / "last.pt")
    with caplog.at_level(logging.INFO):
        found = evaluate(run, tiny_data, FAST, workers=0)
    assert "the best student so far" in found.notices[0]
    assert "stopped after epoch 2 of 40" in found.notices[0]
    assert found.notices[0] in caplog.text
    assert evaluate(tiny_run, tiny_data, FAST, workers=0).notices == ()


def test_the_runs_of_several_seeds_have_a_mean_and_a_spread(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    for seed in (10, 9):
        shutil.copytree(tiny_run, tmp_path / "runs" / f"seed-{seed}")
    (tmp_path / "runs" / "seed-notes").mkdir()
    assert [path.name for path in seed_runs(tmp_path / "runs")] == ["seed-9", "seed-10"]
    assert seed_runs(tiny_run) == []
    found = evaluate_any(tmp_path / "runs", tiny_data, FAST, workers=0)
    assert isinstance(found, SeedsEvaluation)
    assert list(found.seeds) == ["seed-9", "seed-10"]
    spread = found.spread["test"]
    assert spread["accuracy"].std == 0
    assert {"agreement", "kl_nats"} <= spread.keys()
    assert "2 seeds" in found.to_table()
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["spread"]["test"]["accuracy"]["std"] == 0
    (tmp_path / "runs" / "seed-11").mkdir()
    with pytest.raises(RunError, match=r"seed-11 is not a run folder"):
        evaluate_seeds(tmp_path / "runs", tiny_data, FAST)


def test_a_cache_that_was_rebuilt_by_another_teacher_gives_no_agreement(
    tiny_run: Path, tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    other = build_cache(tiny_data, tmp_path / "other.h5", dataclasses.replace(tiny_build, seed=5, views=1)).path
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "cache": str(other)}))
    assert on_test(run, tiny_data).agreement is None
    assert on_test(run, tiny_data, cache=other).agreement is not None


def test_a_class_without_images_in_the_split_is_a_dash_and_valid_json(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    shutil.rmtree(data / "test" / "melanoma")
    result = evaluate(tiny_run, data, FAST, workers=0)
    described = json.loads(json.dumps(result.to_dict(), allow_nan=False))["splits"]["test"]
    assert described["student"]["per_class"]["melanoma"]["f1"] is None
    assert any(line.split() == ["melanoma", "-", "-", "-", "-", "0"] for line in result.to_table().splitlines())


def test_groups_that_a_data_set_file_says_are_drawn_whole(
    cli: Callable[..., tuple[int, str, str]], tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    names = [path.relative_to(tiny_data).as_posix() for path in sorted(tiny_data.rglob("*.png"))]
    rows = [f"{name},{name.split('/')[0]} {number // 3}" for number, name in enumerate(names)]
    (tmp_path / "patients.csv").write_text("\n".join(["image,patient", *rows]), encoding="utf-8")
    described = tmp_path / "data.yaml"
    described.write_text(f"root: {tiny_data}\ncsv: patients.csv\ngroup_column: patient\n", encoding="utf-8")
    code, out, said = cli("evaluate", tiny_run, described, "--split", "test", "--json", "-")
    assert code == 0, said
    found = json.loads(out)["splits"]["test"]
    assert (found["unit"], found["n_units"]) == ("group", 5)
    code, _, said = cli("report", tiny_run, described, "--split", "test", "-o", tmp_path / "report.html")
    assert code == 0, said
    assert "drawn by group" in (tmp_path / "report.html").read_text(encoding="utf-8")
