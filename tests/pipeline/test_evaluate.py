"""Measuring a student: a run folder and its export alike, the teacher beside it where the cache has the images."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from cache import CacheError
from data.errors import DataNotFound
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import RunError
from pipeline.evaluate import evaluate
from pipeline.export import export


def test_an_evaluation_has_the_student_the_teacher_and_their_agreement(tiny_run: Path, tiny_data: Path) -> None:
    result = evaluate(tiny_run, tiny_data, split="test", workers=0)
    assert result.student.n_samples == 15
    assert result.teacher is not None
    assert result.agreement is not None
    assert 0 <= result.agreement.top1 <= 1
    assert sum(map(sum, result.student.confusion)) == 15
    table = result.to_table()
    for word in ("accuracy", "balanced", "macro F1", "confusion", "agreement", *result.classes):
        assert word in table
    assert json.loads(json.dumps(result.to_dict()))["student"]["per_class"].keys() == set(result.classes)


def test_an_exported_file_scores_as_its_run(tiny_run: Path, tiny_data: Path, tiny_cache: Path, tmp_path: Path) -> None:
    export(tiny_run, tmp_path / "m.pt")
    of_run = evaluate(tiny_run, tiny_data, workers=0)
    assert evaluate(tmp_path / "m.pt", tiny_data, workers=0).agreement is None
    assert evaluate(tmp_path / "m.pt", tiny_data, cache=tiny_cache, workers=0).to_dict() == of_run.to_dict()


def test_a_cache_without_that_split_is_a_notice_or_an_error_when_it_was_asked_for(
    tiny_run: Path, tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    for path in data.glob("test/*/*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    assert evaluate(tiny_run, data, workers=0).teacher is None
    with pytest.raises(CacheError, match="knows none of the 15 images"):
        evaluate(tiny_run, data, cache=tiny_cache, workers=0)


def test_a_missing_split_names_those_that_are_there(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    shutil.rmtree(data / "test")
    with pytest.raises(DataNotFound, match="it has: train, val"):
        evaluate(tiny_run, data, split="test", workers=0)


def test_what_is_no_model_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder or model file"):
        evaluate(tmp_path / "nothing", tiny_data)
    with pytest.raises(RunError, match="is not a run folder"):
        evaluate(tmp_path, tiny_data)


def test_a_cache_that_was_rebuilt_by_another_teacher_gives_no_agreement(
    tiny_run: Path, tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    other = build_cache(tiny_data, tmp_path / "other.h5", dataclasses.replace(tiny_build, seed=5, views=1)).path
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "cache": str(other)}))
    assert evaluate(run, tiny_data, workers=0).agreement is None
    assert evaluate(run, tiny_data, cache=other, workers=0).agreement is not None


def test_a_class_without_images_in_the_split_is_a_dash_and_valid_json(
    tiny_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    shutil.rmtree(data / "test" / "melanoma")
    result = evaluate(tiny_run, data, workers=0)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["student"]["per_class"]["melanoma"]["f1"] is None
    assert "melanoma                      -" in result.to_table()
