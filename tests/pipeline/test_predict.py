"""Using a student: probabilities by file, from a run folder and its export alike, whatever is asked beside it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from data.decode import read_image
from data.errors import BadFile, BadImage, UnreadableImage
from data.files import read_file
from data.samples import content_key
from data.views import ViewPolicy, draw, render
from pipeline import predict as predicting
from pipeline.errors import RunError, SettingError
from pipeline.export import export
from pipeline.inference import Student, load_student
from pipeline.predict import PredictConfig, Prediction, Predictor, predict

from .conftest import TwoTasks

Predictors = dict[int, Predictor]


@pytest.fixture(scope="module")
def images(tiny_data: Path) -> list[Path]:
    """Three of two classes."""
    return sorted(tiny_data.glob("test/melano*/*.png"))[1:4]


@pytest.fixture(scope="module")
def lively(tiny_run: Path) -> Student:
    """A student whose answers depend on what it sees, which those of two epochs hardly do."""
    student, sight = load_student(tiny_run, "cpu"), torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 5))
    torch.nn.init.normal_(module[2].weight, generator=sight)
    return dataclasses.replace(student, module=module.eval())


@pytest.fixture(scope="module")
def predictors(lively: Student) -> Predictors:
    """Number of views -> that student asked about so many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicting, "load_student", lambda *_: lively)
        return {tta: Predictor("", PredictConfig(tta=tta)) for tta in (1, 5, 40)}


def values(found: object) -> list[float]:
    assert isinstance(found, Prediction)
    return list(found.probabilities.values())


def test_probabilities_sum_to_one_and_the_label_is_the_largest(tiny_run: Path, images: list[Path]) -> None:
    for path, found in zip(images, predict(tiny_run, images), strict=True):
        assert found.path == str(path)
        assert sum(found.probabilities.values()) == pytest.approx(1)
        assert found.label == max(found.probabilities, key=lambda name: found.probabilities[name])


def test_the_exported_file_says_the_same_of_one_view_and_of_several(
    tiny_run: Path, images: list[Path], tmp_path: Path
) -> None:
    export(tiny_run, tmp_path / "m.pt")
    for config in (PredictConfig(), PredictConfig(tta=4)):
        pairs = zip(predict(tiny_run, images, config), predict(tmp_path / "m.pt", images, config), strict=True)
        for one, other in pairs:
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_several_views_are_the_clean_one_and_those_drawn_by_content_their_probabilities_averaged(
    lively: Student, images: list[Path], predictors: Predictors
) -> None:
    policy = ViewPolicy()
    image, key = read_image(images[0]), content_key(images[0].read_bytes())
    views = [render(image, draw(policy, key, view, 0), lively.card.size_px) for view in range(5)]
    each = softmax(lively.logits(torch.stack(views)).astype(float), axis=1)
    (one,), (five,) = predictors[1](images[:1]), predictors[5](images[:1])
    assert values(one) == pytest.approx(each[0].tolist(), abs=1e-5)
    assert values(five) == pytest.approx(each.mean(axis=0).tolist(), abs=1e-5)
    assert np.abs(each[0] - each.mean(axis=0)).max() > 1e-3, "else this test cannot fail"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 2), min_size=1, max_size=6), tta=st.sampled_from([1, 5, 40]))
def test_an_answer_depends_neither_on_the_name_nor_on_the_images_beside_it(
    order: list[int], tta: int, predictors: Predictors, images: list[Path], tmp_path: Path
) -> None:
    alone = [values(next(iter(predictors[tta]([path])))) for path in images]
    renamed = [tmp_path / f"{at} {number}.jpg" for at, number in enumerate(order)]
    for path, number in zip(renamed, order, strict=True):
        shutil.copy(images[number], path)
    for number, found in zip(order, predictors[tta](renamed), strict=True):
        assert values(found) == pytest.approx(alone[number], abs=1e-5)


def test_a_students_own_geometry_is_that_of_its_drawn_views(
    tiny_run: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = load_student(tiny_run, "cpu")
    padded = dataclasses.replace(student, card=dataclasses.replace(student.card, geometry="pad"))
    monkeypatch.setattr(predicting, "load_student", lambda *_: padded)
    seen = set()

    def noting(image: torch.Tensor, row: np.ndarray, size_px: int, geometry: str) -> torch.Tensor:
        seen.add(geometry)
        return render(image, row, size_px, geometry)

    monkeypatch.setattr(predicting, "render", noting)
    predict(tiny_run, images[:1], PredictConfig(tta=3))
    assert seen == {"pad"}


@pytest.mark.parametrize("tta", [0, 65])
def test_so_many_views_are_refused_with_their_number(tta: int) -> None:
    with pytest.raises(SettingError, match=rf"tta must be in 1\.\.64 views, got {tta}"):
        PredictConfig(tta=tta)


def test_files_that_are_no_image_are_all_named_with_their_reasons(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    paths = [tmp_path / name for name in ("x.jpg", "empty.png", "none.jpg")]
    with pytest.raises(BadImage, match=r"3 of 3 images cannot be used: are these the right files\?") as caught:
        predict(tiny_run, paths)
    reasons = [line.rsplit("/", 1)[1] for line in str(caught.value).splitlines()[1:]]
    assert reasons == [
        "x.jpg: cannot be decoded (not an image)", "empty.png: the file is empty", "none.jpg: no such file",
    ]  # fmt: skip


def test_a_folder_stands_for_the_images_below_it(tiny_run: Path, tiny_data: Path) -> None:
    found = predict(tiny_run, [tiny_data / "test"])
    assert [one.path for one in found] == sorted(map(str, tiny_data.glob("test/*/*.png")))


def test_good_images_are_answered_in_their_place_among_bad_ones(
    predictors: Predictors, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "x.jpg").write_text("hello")
    found = list(predictors[5]([images[0], tmp_path / "x.jpg", images[1]]))
    assert [type(one) for one in found] == [Prediction, BadFile, Prediction]
    assert values(found[2]) == pytest.approx(values(next(iter(predictors[5]([images[1]])))), abs=1e-5)


def test_a_disk_that_fails_stops_after_the_answers_before_it(
    predictors: Predictors, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: str) -> bytes | BadFile:
        return BadFile(path, "cannot be read (Input/output error)", True) if path == str(images[1]) else read_file(path)

    monkeypatch.setattr(predicting, "read_file", failing)
    found = predictors[1](images)
    assert isinstance(next(found), Prediction)
    with pytest.raises(UnreadableImage, match=r"cannot be read \(Input/output error\); repeat the command"):
        next(found)


def test_numbers_that_are_not_finite_are_no_answer(
    tiny_run: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Student, "logits", lambda self, pixels: np.full((len(pixels), 5), np.nan, np.float32))
    with pytest.raises(RunError, match="numbers that are not finite"):
        predict(tiny_run, images)


def test_few_images_are_in_memory_however_many_are_asked_about(
    predictors: Predictors, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noting(path: str) -> bytes | BadFile:
        read.append(path)
        return read_file(path)

    monkeypatch.setattr(predicting, "read_file", noting)
    found = predictors[40](images * 100)
    next(found)
    ahead = min(8, os.cpu_count() or 1) + 2
    assert len(read) <= 1 + ahead
    found.close()
    assert len(read) <= 1 + ahead, "what nobody waits for any more is not read"


def test_several_tasks_are_averaged_each_by_itself(two_tasks: TwoTasks, images: list[Path]) -> None:
    (found,) = predict(two_tasks.run, images[:1], PredictConfig(tta=3))
    for task, label in found.labels.items():
        own = {name: p for name, p in found.probabilities.items() if name.startswith(f"{task}: ")}
        assert sum(own.values()) == pytest.approx(1)
        assert max(own, key=lambda name: own[name]) == f"{task}: {label}"


def test_the_predictor_of_a_wrong_model_says_what_it_is(
    tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        Predictor(tmp_path)
