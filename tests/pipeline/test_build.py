"""Stage one: the same arrays however it is run, resumed or extended; nothing lost, bad input told."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cache import CacheError, CacheReader
from data.errors import BadImage
from data.reading import read_sample
from data.scan import scan_data
from data.views import ViewPolicy, draw, render, witness
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import SettingError
from pipeline.teachers.loading import open_teacher
from pipeline.teachers.teacher import Teacher

ROW_ARRAYS = ("params", "witness", "logits", "feature")


def arrays(path: Path) -> dict[str, np.ndarray]:
    reader = CacheReader(path)
    rows = np.arange(reader.n_rows)
    return {"keys": reader.keys, "view": reader.view, **{name: getattr(reader, name)(rows) for name in ROW_ARRAYS}}


def assert_same_arrays(one: Path, other: Path) -> None:
    left, right = arrays(one), arrays(other)
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
    assert CacheReader(one).content_id == CacheReader(other).content_id


def test_train_images_get_all_views_and_the_others_the_clean_one(tiny_data: Path, tiny_cache: Path) -> None:
    reader = CacheReader(tiny_cache)
    for sample in scan_data(tiny_data).samples:
        views = reader.views_of(int(reader.find([sample.key])[0])).tolist()
        assert views == ([0, 1, 2] if sample.split == "train" else [0])


def test_rows_hold_the_drawn_numbers_the_witness_and_the_logits_of_their_view(
    tiny_data: Path, tiny_cache: Path, tiny_teacher: Path
) -> None:
    reader, samples = CacheReader(tiny_cache), scan_data(tiny_data).of_split("train")
    prompts = {name: tuple(texts) for name, texts in reader.manifest.identity["teacher"]["prompts"].items()}
    teacher = open_teacher(str(tiny_teacher), list(prompts), prompts, device="cpu", precision="fp32")
    for sample in samples[:4]:
        row = int(reader.row(reader.find([sample.key]), [2])[0])
        expected = draw(ViewPolicy(), sample.key, 2, 0)
        np.testing.assert_array_equal(reader.params([row])[0], expected)
        view = render(read_sample(sample), expected, 32)
        np.testing.assert_array_equal(reader.witness([row])[0], witness(view))
        embedding = teacher.embed(view[None])
        np.testing.assert_allclose(reader.logits([row]), teacher.head.logits(embedding), atol=1e-4)
        np.testing.assert_allclose(reader.feature([row]), embedding, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("workers", [1, 2])
def test_arrays_are_equal_for_any_number_of_workers(
    workers: int, tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path
) -> None:
    other = build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, workers=workers))
    assert_same_arrays(other.path, tiny_cache)


def test_an_interrupted_build_goes_on_and_ends_in_the_same_arrays(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "t.h5", 0
    embed = Teacher.embed

    def interrupted(self: Teacher, pixels: torch.Tensor) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return embed(self, pixels)

    monkeypatch.setattr(Teacher, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_cache(tiny_data, out, tiny_build)
    assert not out.exists()
    monkeypatch.setattr(Teacher, "embed", embed)
    resumed = build_cache(tiny_data, out, tiny_build)
    assert 0 < resumed.n_computed < resumed.n_rows == 120
    assert_same_arrays(out, tiny_cache)
    assert not out.with_name("t.h5.parts").exists()


def test_repeating_a_finished_build_computes_nothing(tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path) -> None:
    out = build_cache(tiny_data, tmp_path / "t.h5", tiny_build).path
    before = out.read_bytes()
    assert build_cache(tiny_data, out, tiny_build).n_computed == 0
    assert out.read_bytes() == before


def test_a_cache_is_extended_by_new_images_and_new_views(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path
) -> None:
    fewer = shutil.copytree(tiny_data, tmp_path / "fewer")
    for path in fewer.glob("train/*/00003.png"):
        path.unlink()
    out = build_cache(fewer, tmp_path / "t.h5", dataclasses.replace(tiny_build, views=2)).path
    extended = build_cache(tiny_data, out, tiny_build)
    assert extended.n_computed == 5 * 3 + 25  # a new image of each class, and view 2 of the 25 others
    assert_same_arrays(out, tiny_cache)


def test_another_recipe_is_refused_and_the_file_left_alone(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copy(tiny_cache, tmp_path / "t.h5"))
    with pytest.raises(CacheError, match=r"views\.seed"):
        build_cache(tiny_data, out, dataclasses.replace(tiny_build, seed=1))
    assert out.read_bytes() == tiny_cache.read_bytes()


def test_bad_images_are_all_listed_before_the_teacher_starts(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    bad = sorted(data.glob("train/*/00001.png"))[:2]
    for number, path in enumerate(bad):
        path.write_bytes(b"\x89PNG\r\n\x1a\n broken %d" % number)
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "embed", lambda *_: pytest.fail("the teacher started"))
        with pytest.raises(BadImage, match=r"2 of 60 images cannot be decoded; the teacher has not started") as caught:
            build_cache(data, tmp_path / "t.h5", tiny_build)
    assert all(str(path) in str(caught.value) for path in bad)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    for path in bad:
        path.unlink()
    assert build_cache(data, tmp_path / "t.h5", tiny_build).n_computed == 120 - 2 * 3


def test_settings_out_of_range_say_what_they_got() -> None:
    with pytest.raises(SettingError, match=r"views must be in 1\.\.65535, got 0"):
        BuildConfig(views=0)
    with pytest.raises(SettingError, match="precision must be one of"):
        BuildConfig(precision="fp8")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps any bytes as a name")
@pytest.mark.parametrize("own_prompts", [False, True])
def test_class_folders_whose_names_are_no_text_are_refused_by_name(
    own_prompts: bool, tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    data, name = shutil.copytree(tiny_data, tmp_path / "images"), os.fsdecode(b"m\xff")
    for split in ("train", "val", "test"):
        (data / split / "melanoma").rename(data / split / name)
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("melanoma: melanoma")
    config = dataclasses.replace(tiny_build, prompts=prompts if own_prompts else None)
    with pytest.raises(SettingError, match="not UTF-8") as caught:
        build_cache(data, tmp_path / "t.h5", config)
    assert name in str(caught.value)


def test_every_forward_pass_has_the_same_number_of_rows(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    embed = Teacher.embed

    def watched(self: Teacher, pixels: torch.Tensor) -> np.ndarray:
        sizes.append(len(pixels))
        return embed(self, pixels)

    monkeypatch.setattr(Teacher, "embed", watched)
    build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, batch_size=7))
    assert set(sizes) == {7}
    assert len(sizes) == -(-120 // 7)


def test_without_embeddings_the_logits_are_the_same_and_nothing_else_is_stored(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path
) -> None:
    out = build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, embedding=False)).path
    small, full = CacheReader(out), CacheReader(tiny_cache)
    assert (small.features, full.features) == ({}, {"embedding": (32,)})
    assert (small.recipe_id, small.cache_id) == (full.recipe_id, full.cache_id)
    np.testing.assert_array_equal(small.logits(slice(None)), full.logits(slice(None)))
    assert out.stat().st_size < tiny_cache.stat().st_size - small.n_rows * 32 * 2


def test_without_names_the_cache_is_the_same_and_knows_no_path(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path
) -> None:
    out = build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, names=False)).path
    assert CacheReader(out).names is None
    assert_same_arrays(out, tiny_cache)
    names = CacheReader(tiny_cache).names
    assert names is not None
    assert sorted(names) == sorted(sample.name for sample in scan_data(tiny_data).samples)
    assert not any(name.encode() in out.read_bytes() for name in names)


@pytest.mark.parametrize("stored", [True, False])
def test_a_cache_with_embeddings_is_not_extended_by_rows_without_and_the_other_way_round(
    stored: bool, tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    out = build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, embedding=stored, views=2)).path
    before = out.read_bytes()
    with pytest.raises((CacheError, SettingError), match="embedding") as caught:
        build_cache(tiny_data, out, dataclasses.replace(tiny_build, embedding=not stored))
    assert str(out) in str(caught.value)
    assert ("--embedding" if stored else "--no-embedding") in str(caught.value), "the flag that fits"
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_disk_that_may_fill_up_is_a_notice_before_the_teacher_runs(
    tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    usage = shutil.disk_usage(tmp_path)

    def notices(name: str, free_bytes: int) -> list[str]:
        caplog.clear()
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free_bytes))
        build_cache(tiny_data, tmp_path / name, tiny_build)
        return [message for message in caplog.messages if "the disk may fill up" in message]

    (notice,) = notices("a.h5", 0)
    match = re.search(r"needs up to ([\d,]+) bytes in (.*), 0 are free", notice)
    assert match, notice
    assert match[2] == str(tmp_path)
    needed = int(match[1].replace(",", ""))
    rows_bytes = 120 * (4 * 10 + 12 + 4 * 5 + 2 * 32)  # params, witness, logits, embedding: in segments and merged
    assert 2 * rows_bytes < needed < 2 * (tmp_path / "a.h5").stat().st_size
    assert len(notices("b.h5", needed - 1)) == 1
    assert notices("c.h5", needed) == []
    assert notices("c.h5", 0) == [], "nothing to compute, nothing to write"
