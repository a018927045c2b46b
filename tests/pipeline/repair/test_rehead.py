"""New prompts on stored embeddings give what a build with those prompts gives, and only the cache's own teacher may."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

from cache import CacheReader, Table
from cache.errors import CacheMismatch
from data.samples import FOLDER_TASK
from data.scan import scan_data
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import SettingError, TeacherError
from pipeline.info import describe_cache_as_text
from pipeline.repair.calibration import nll_nats
from pipeline.repair.rehead import ReheadConfig, ReheadResult, rehead_cache
from pipeline.repair.remedies import PROMPTED_KINDS
from pipeline.targets import SEEN
from pipeline.teachers.dual_encoder import MODEL_TYPES
from pipeline.teachers.prompts import default_prompts, stored_prompts
from reliability.tiny import write_teacher

EVERY = slice(0, 45)
NARROW = 0.06
"""Logits that float16 embeddings of 32 numbers may cost; the error falls with the root of the width."""


@pytest.fixture(scope="module")
def prompts(few_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One other prompt, a class with two, and the rest as they were."""
    texts: dict[str, object] = {n: list(t) for n, t in default_prompts(scan_data(few_images).classes["class"]).items()}
    texts |= {"melanoma": "melanocytic nevus", "melanocytic nevus": ["melanoma", "vascular lesion melanoma"]}
    path = tmp_path_factory.mktemp("prompts") / "p.yaml"
    path.write_text(yaml.safe_dump(texts))
    return path


@pytest.fixture(scope="module")
def fresh(few_images: Path, tiny_build: BuildConfig, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with those prompts."""
    config = dataclasses.replace(tiny_build, prompts=prompts)
    return build_cache(few_images, tmp_path_factory.mktemp("fresh") / "t.h5", config).path


@pytest.fixture
def again(base: CacheReader, tiny_teacher: Path, prompts: Path, tmp_path: Path) -> Callable[..., ReheadResult]:
    """Re-head the unchanged world's cache; keyword arguments replace the settings."""

    def again(
        cache: Path = base.path, name: str = "new.h5", data: Path | None = None, **changes: object
    ) -> ReheadResult:
        config = ReheadConfig(prompts=prompts, teacher=str(tiny_teacher))
        return rehead_cache(cache, tmp_path / name, dataclasses.replace(config, **changes), data)

    return again


def test_the_logits_are_those_of_a_fresh_build(
    again: Callable[..., ReheadResult], fresh: Path, base: CacheReader
) -> None:
    made, built = CacheReader(again().path), CacheReader(fresh)
    away = np.abs(made.logits(EVERY) - built.logits(EVERY)).max()
    assert away < NARROW
    assert np.abs(made.logits(EVERY) - base.logits(EVERY)).max() > 1
    np.testing.assert_array_equal(made.feature(EVERY), base.feature(EVERY))
    assert made.tasks == base.tasks
    ours, theirs = made.manifest.identity["teacher"], built.manifest.identity["teacher"]
    assert {name for name in ours if ours[name] != theirs.get(name)} == {
        "head", "parent_recipe_id", "text_embeddings_sha256",
    }  # fmt: skip
    assert theirs.keys() - ours.keys() == set()


def test_a_reheaded_cache_says_what_it_is(again: Callable[..., ReheadResult], base: CacheReader, prompts: Path) -> None:
    path = again().path
    said = describe_cache_as_text(path)
    assert "head        zero-shot, with new prompts" in said
    assert "prompt      melanocytic nevus: melanoma | vascular lesion melanoma" in said
    assert base.recipe_id in said
    made = CacheReader(path)
    assert made.recipe_id != base.recipe_id
    assert {k: list(v) for k, v in stored_prompts(made.manifest.identity).items()} == {
        name: [texts] if isinstance(texts, str) else texts
        for name, texts in yaml.safe_load(prompts.read_text()).items()
    }
    twice = CacheReader(again(name="twice.h5").path)
    assert (twice.recipe_id, twice.content_id) == (made.recipe_id, made.content_id)


def test_a_child_can_be_reheaded_to_what_its_parent_said(again: Callable[..., ReheadResult], base: CacheReader) -> None:
    child = again()
    back = CacheReader(again(child.path, "back.h5", prompts=None, templates=("{}",)).path)
    assert np.abs(back.logits(EVERY) - base.logits(EVERY)).max() < NARROW


def test_the_logits_of_a_wider_teacher_agree_with_a_fresh_build_to_a_hundredth(
    few_images: Path, tiny_build: BuildConfig, prompts: Path, tmp_path: Path
) -> None:
    teacher = str(write_teacher(tmp_path / "teacher", few_images, width=256))
    config = dataclasses.replace(tiny_build, teacher=teacher, views=2)
    base = build_cache(few_images, tmp_path / "t.h5", config).path
    fresh = build_cache(few_images, tmp_path / "fresh.h5", dataclasses.replace(config, prompts=prompts)).path
    made = rehead_cache(base, tmp_path / "new.h5", ReheadConfig(prompts=prompts, teacher=teacher)).path
    old, built, reheaded = (CacheReader(path).logits(slice(None)) for path in (base, fresh, made))
    assert np.abs(reheaded - built).max() < 0.01
    assert np.abs(old - built).max() > 1


def test_templates_stand_around_every_prompt(again: Callable[..., ReheadResult], base: CacheReader) -> None:
    made = again(prompts=None, templates=("a photo of {}", "{}"))
    found = stored_prompts(CacheReader(made.path).manifest.identity)
    assert found["melanoma"] == ("a photo of melanoma", "melanoma")


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_temperature_divides_the_logits(
    split: str, again: Callable[..., ReheadResult], few_images: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(few_images, tmp_path / "images")
    if split == "train":
        shutil.rmtree(data / "val")
    plain, scaled = again(data=data), again(name="scaled.h5", data=data, calibrate=True)
    assert scaled.temperatures is not None
    (temperature,) = scaled.temperatures
    assert temperature > 1.5  # a fresh teacher is sure of nonsense
    raw, divided = (CacheReader(made.path).logits(EVERY) for made in (plain, scaled))
    np.testing.assert_allclose(divided * temperature, raw, rtol=1e-5)
    images, reader = scan_data(data), CacheReader(plain.path)
    rows = reader.row(reader.find([sample.key for sample in images.of_split(split)]), 0)
    labels = np.array([images.classes[FOLDER_TASK].index(s.labels[FOLDER_TASK]) for s in images.of_split(split)])
    assert nll_nats(divided[rows], labels) < nll_nats(raw[rows], labels)
    assert plain.scores[0].images == ("val" if split == "val" else "test")
    assert plain.scores == scaled.scores


def test_with_data_the_classes_are_those_of_its_folders(
    again: Callable[..., ReheadResult], few_images: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(few_images, tmp_path / "images")
    for split in ("train", "val", "test"):
        (data / split / "melanoma").rename(data / split / "mole")
    texts = {name: name for name in scan_data(data).classes["class"]}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(texts))
    made = again(prompts=tmp_path / "p.yaml", data=data)
    assert CacheReader(made.path).tasks["class"] == tuple(sorted(texts))
    assert made.scores[0].old is None


def test_what_a_teacher_has_seen_it_has_seen_with_any_prompt(
    again: Callable[..., ReheadResult], base: CacheReader, resealed: Callable[..., Path]
) -> None:
    seen = (np.arange(45) % 3 == 0).astype("<f2")

    def change(table: Table) -> Table:
        return dataclasses.replace(table, features={**table.features, SEEN: seen})

    made = CacheReader(again(resealed(base.path, change)).path)
    np.testing.assert_array_equal(made.feature(EVERY, SEEN), seen)
    assert SEEN not in CacheReader(again(name="unseen.h5").path).features


def test_another_teacher_is_refused_with_what_differs(
    again: Callable[..., ReheadResult], tiny_teacher: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_teacher, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({**weights, "logit_bias": weights["logit_bias"] + 1}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CacheMismatch, match=r"is not the teacher of .* \(stored against found\)") as caught:
        again(teacher=str(other))
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == ["weights_sha256"]
    assert not (tmp_path / "new.h5").exists()


def test_a_name_that_leads_nowhere_asks_for_the_teachers_place(again: Callable[..., ReheadResult]) -> None:
    with pytest.raises(TeacherError, match="cannot be loaded under that name: pass --teacher"):
        again(teacher=None)


def test_a_cache_without_embeddings_or_text_side_says_what_to_do(
    again: Callable[..., ReheadResult], base: CacheReader, resealed: Callable[..., Path]
) -> None:
    bare = resealed(base.path, lambda table: dataclasses.replace(table, features={}), name="bare.h5")
    with pytest.raises(CacheMismatch, match=r"holds no embeddings.*: build it anew with --embedding"):
        again(bare)
    for teacher in ("resnet50", {"kind": "timm"}, None):
        foreign = resealed(base.path, identity={"teacher": teacher}, name="foreign.h5")
        with pytest.raises(CacheMismatch, match=r"takes prompts \(siglip, clip\): .*softlabel cache probe"):
            again(foreign)
        foreign.unlink()


def test_embeddings_that_are_not_the_teachers_are_told(
    again: Callable[..., ReheadResult], base: CacheReader, resealed: Callable[..., Path]
) -> None:
    def change(table: Table) -> Table:
        return dataclasses.replace(table, features={"embedding": table.features["embedding"][:, :5]})

    with pytest.raises(CacheMismatch, match="has embeddings of 5 numbers, its teacher gives 32"):
        again(resealed(base.path, change, name="short.h5"))


def test_a_temperature_is_never_fitted_on_images_that_the_teacher_was_fitted_on(
    again: Callable[..., ReheadResult], base: CacheReader, few_images: Path, tmp_path: Path,
    resealed: Callable[..., Path], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    data = shutil.copytree(few_images, tmp_path / "images", ignore=shutil.ignore_patterns("val"))
    learned = {sample.key for sample in scan_data(data).of_split("train")[:4]}

    def marking(keys: set[bytes]) -> Callable[[Table], Table]:
        def change(table: Table) -> Table:
            seen = np.repeat([key.tobytes() in keys for key in table.key], np.diff(table.first_row.astype(int)))
            return dataclasses.replace(table, features={**table.features, SEEN: seen.astype("<f2")})

        return change

    with caplog.at_level(logging.INFO):
        again(resealed(base.path, marking(learned), name="some.h5"), data=data, calibrate=True)
    assert "on 6 train images: NLL" in caplog.text
    every = {sample.key for sample in scan_data(data).samples}
    with pytest.raises(SettingError, match="the teacher was fitted on all of them: leave out --calibrate"):
        again(resealed(base.path, marking(every), name="every.h5"), name="two.h5", data=data, calibrate=True)


def test_settings_that_contradict_each_other_are_told(again: Callable[..., ReheadResult], prompts: Path) -> None:
    with pytest.raises(SettingError, match="other prompts are needed: --prompts FILE, --template TEXT, or both"):
        ReheadConfig()
    with pytest.raises(
        SettingError, match=re.escape("a template has exactly one {}, where the prompt goes, got 'a mole'")
    ):
        ReheadConfig(prompts=prompts, templates=("a mole",))
    with pytest.raises(SettingError, match="a temperature needs labels: name the images with --data DATA"):
        again(calibrate=True)


def test_the_prompts_are_shown(again: Callable[..., ReheadResult], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        again()
    assert "prompt  melanocytic nevus: melanoma | vascular lesion melanoma" in caplog.text


def test_every_teacher_with_a_text_side_can_be_re_headed() -> None:
    assert PROMPTED_KINDS == MODEL_TYPES
