"""Samples meet their cached rows by content and class name, and all that does not fit is told at once."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache import CacheError, CacheReader, Table
from cache.errors import CacheMismatch
from data.samples import FOLDER_TASK, content_key
from data.scan import scan_data
from pipeline import joining
from pipeline.targets import TeacherTargets

Resealed = Callable[..., Path]
LEFT_OUT = "cannot be decoded and are left out"


def join(cache: Path, data: Path, *splits: str, **options: Any) -> dict[str, TeacherTargets]:
    samples = scan_data(data)
    groups = {split: samples.of_split(split) for split in splits or ("train",)}
    return joining.join(CacheReader(cache), groups, [str(data)], samples.classes, **options)


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the images, to be changed."""
    return shutil.copytree(tiny_data, tmp_path / "images")


@pytest.fixture
def bad(data: Path) -> list[Path]:
    """Two files of `data`, of train and val, that are no images any more."""
    paths = [sorted(data.glob(f"{split}/melanoma/*.png"))[0] for split in ("train", "val")]
    for number, path in enumerate(paths):
        path.write_bytes(b"no image %d" % number)
    return paths


def skipped(*paths: Path) -> dict[str, object]:
    """The provenance of a build that left these files out."""
    keys = sorted(content_key(path.read_bytes()).hex() for path in paths)
    return {"skipped": [{"key": key, "reason": "cannot be decoded"} for key in keys]}


def add_image(data: Path, name: str = "train/melanoma/new.png") -> Path:
    """An image that decodes and that no cache knows."""
    source = next(path for path in sorted((data / "train").glob("*/*.png")) if path.read_bytes()[:4] == b"\x89PNG")
    (data / name).write_bytes(source.read_bytes() + b"\0")
    return data / name


def test_renamed_reordered_images_get_the_same_rows(tiny_data: Path, tiny_cache: Path, data: Path) -> None:
    for number, path in enumerate(sorted(data.glob("train/*/*.png"), reverse=True)):
        path.rename(path.with_name(f"patient-{number:03}.png"))
    one, other = join(tiny_cache, tiny_data)["train"], join(tiny_cache, data)["train"]
    assert [s.key for s in one.samples] == [s.key for s in other.samples]
    np.testing.assert_array_equal(one.index_N, other.index_N)
    np.testing.assert_array_equal(one.epoch_rows(0, 0), other.epoch_rows(0, 0))


def test_each_group_has_its_own_samples_at_the_places_of_their_keys(tiny_data: Path, tiny_cache: Path) -> None:
    for split, targets in join(tiny_cache, tiny_data, "train", "val", "test").items():
        assert {sample.split for sample in targets.samples} == {split}
        keys = [bytes(key) for key in targets.reader.keys[targets.index_N]]
        assert keys == [sample.key for sample in targets.samples]


def test_labels_are_columns_of_the_cache_by_name(tiny_data: Path, tiny_cache: Path) -> None:
    targets = join(tiny_cache, tiny_data)["train"]
    classes = targets.reader.tasks[FOLDER_TASK]
    assert [classes[i] for i in targets.labels_N] == [s.labels[FOLDER_TASK] for s in targets.samples]


def test_missing_images_are_counted_with_the_command_that_adds_them(tiny_cache: Path, data: Path) -> None:
    add_image(data)
    with pytest.raises(CacheMismatch, match=r"lacks 1 of 31 images \(first: .*new\.png\): run `softlabel cache build"):
        join(tiny_cache, data)


def test_a_copy_with_other_bytes_is_told_apart_from_missing_images(tiny_cache: Path, data: Path) -> None:
    for path in data.glob("*/*/*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CacheMismatch, match=r"knows none of the 30 images .*other bytes"):
        join(tiny_cache, data)


def test_a_class_that_the_cache_does_not_know_is_named(tiny_cache: Path, data: Path) -> None:
    (data / "train" / "melanoma").rename(data / "train" / "freckle")
    with pytest.raises(CacheMismatch, match=r"does not know the classes freckle; it was built for .*melanoma"):
        join(tiny_cache, data)


def test_a_cache_of_other_classes_names_no_thousand_of_them(told: Callable[..., TeacherTargets], data: Path) -> None:
    with pytest.raises(CacheMismatch) as caught:
        join(told(range(30), np.zeros((30, 30))).reader.path, data)
    assert "class 19, and 10 more" in str(caught.value)
    assert "class 20" not in str(caught.value)


def test_a_cache_of_other_classes_says_what_can_be_done_with_it(
    tiny_cache: Path, data: Path, resealed: Resealed
) -> None:
    other = [{"name": FOLDER_TASK, "classes": [f"class {number}" for number in range(5)]}]
    with pytest.raises(CacheMismatch, match=r"class 4: its embeddings can learn them: `softlabel cache probe "):
        join(resealed(tiny_cache, identity={"tasks": other}), data)

    def without_embedding(table: Table) -> Table:
        return dataclasses.replace(table, features={})

    with pytest.raises(CacheMismatch, match="class 4: rename the folders, or choose another teacher"):
        join(resealed(tiny_cache, without_embedding, identity={"tasks": other}, name="bare.h5"), data)


def test_a_single_task_is_the_same_whatever_the_cache_calls_it(
    tiny_data: Path, tiny_cache: Path, resealed: Resealed
) -> None:
    classes = list(CacheReader(tiny_cache).tasks[FOLDER_TASK])

    def rename(table: Table) -> None:
        table.logits["sex"] = table.logits.pop(FOLDER_TASK)

    other = resealed(tiny_cache, rename, identity={"tasks": [{"name": "sex", "classes": classes}]})
    renamed, own = (join(cache, tiny_data)["train"] for cache in (other, tiny_cache))
    rows = own.clean_rows()
    np.testing.assert_array_equal(renamed.teacher_logits(rows), own.teacher_logits(rows))


@pytest.mark.parametrize(
    ("column", "task", "is_told"), [("sex", "dx", True), ("dx", "dx", False), ("dx", "class", False)]
)
def test_another_column_with_the_same_classes_is_said(
    tiny_data: Path, tiny_cache: Path, resealed: Resealed, caplog: pytest.LogCaptureFixture,
    column: str, task: str, is_told: bool,
) -> None:  # fmt: skip
    images = scan_data(tiny_data)
    samples = [dataclasses.replace(s, labels={task: s.labels[FOLDER_TASK]}) for s in images.of_split("train")]
    other = resealed(tiny_cache, provenance={"task": column})
    with caplog.at_level(logging.INFO):
        joining.join(CacheReader(other), {"train": samples}, ["DATA"], {task: images.classes[FOLDER_TASK]})
    assert (f"built for the column {column}; here {task} is taken for the same task" in caplog.text) == is_told


def test_views_that_this_version_cannot_render_are_one_line(
    tiny_data: Path, tiny_cache: Path, resealed: Resealed
) -> None:
    views = CacheReader(tiny_cache).manifest.identity["views"]
    other = resealed(tiny_cache, identity={"views": {**views, "interpolation": "lanczos"}})
    with pytest.raises(CacheMismatch, match=r"cannot render: .*'lanczos'; this version renders") as caught:
        join(other, tiny_data)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "views", [5, None, [], "warp", {}, {"crop_area_min": "0x1p99999"}, {"crop_area_min": 3}, {"hue": "0x0p+0"}]
)
def test_views_that_are_nonsense_are_one_line_too(
    views: Any, tiny_data: Path, tiny_cache: Path, resealed: Resealed
) -> None:
    """A cache comes from anybody: its seal fits, and what it says of its views may be anything."""
    sound = CacheReader(tiny_cache).manifest.identity["views"]
    other = resealed(tiny_cache, identity={"views": {**sound, **views} if views and isinstance(views, dict) else views})
    with pytest.raises(CacheMismatch, match="views that this version of softlabel cannot render") as caught:
        join(other, tiny_data)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_clean_view_matters_where_it_is_needed(
    tiny_data: Path, tiny_cache: Path, resealed: Resealed, without_row: Callable[[Table, int], Table]
) -> None:
    sample = scan_data(tiny_data).of_split("train")[3]
    row = CacheReader(tiny_cache).rows_of(int(CacheReader(tiny_cache).find([sample.key])[0])).start
    other = resealed(tiny_cache, lambda table: without_row(table, row))
    assert len(join(other, tiny_data, clean=["val"])["train"].samples) == 30
    with pytest.raises(CacheMismatch) as caught:
        join(other, tiny_data, clean=["train"])
    assert f"lacks the clean view of 1 images (first: {sample.name}): run `softlabel cache build" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_everything_that_does_not_fit_is_told_at_once_each_on_its_line(
    tiny_cache: Path, data: Path, resealed: Resealed, without_row: Callable[[Table, int], Table],
    flipped: Callable[..., Path],
) -> None:  # fmt: skip
    reader = CacheReader(tiny_cache)
    unclean = scan_data(data).of_split("train")[0]
    row = reader.rows_of(int(reader.find([unclean.key])[0])).start
    views = {**reader.manifest.identity["views"], "draw_version": 2}
    cache = resealed(tiny_cache, lambda table: without_row(table, row), identity={"views": views})
    cache = flipped(cache, "logits/0")
    (data / "val" / "melanoma").rename(data / "val" / "freckle")
    add_image(data)
    with pytest.raises(CacheMismatch) as caught:
        join(cache, data, "train", "val", clean=["train", "val"], verified=True)
    title, *lines = str(caught.value).splitlines()
    assert title == f"{cache} and {data} do not fit together:"
    assert len(lines) == 5
    expected = (
        "draw_version 2", "classes freckle", "lacks 1 of 46 images", "lacks the clean view of 1 images",
        "damaged in 1 block: logits/0",
    )  # fmt: skip
    for words in expected:
        assert sum(words in line for line in lines) == 1, (words, lines)


def test_images_that_cannot_be_decoded_count_as_lacking(tiny_cache: Path, data: Path, bad: list[Path]) -> None:
    with pytest.raises(CacheMismatch, match="lacks 2 of 45 images") as caught:
        join(tiny_cache, data, "train", "val")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("because", ["the build left them out", "it was asked for"])
def test_images_that_cannot_be_decoded_are_left_out_with_one_notice(
    because: str, tiny_cache: Path, data: Path, bad: list[Path], resealed: Resealed, caplog: pytest.LogCaptureFixture
) -> None:
    asked = because == "it was asked for"
    cache = tiny_cache if asked else resealed(tiny_cache, provenance=skipped(*bad))
    with caplog.at_level(logging.INFO):
        joined = join(cache, data, "train", "val", clean=["val"], skip_bad_images=asked)
    assert {name: len(targets.samples) for name, targets in joined.items()} == {"train": 29, "val": 14}
    assert not {str(path) for path in bad} & {s.path for targets in joined.values() for s in targets.samples}
    for targets in joined.values():
        assert len(targets.index_N) == len(targets.labels_N) == len(targets.samples)
        assert (targets.index_N >= 0).all()
    notices = [record.getMessage() for record in caplog.records if LEFT_OUT in record.getMessage()]
    assert len(notices) == 1
    assert notices[0].startswith("2 images ")


def test_the_build_leaves_out_by_content_not_by_name(
    tiny_cache: Path, data: Path, bad: list[Path], resealed: Resealed
) -> None:
    cache = resealed(tiny_cache, provenance=skipped(*bad))
    bad[0].rename(bad[0].with_name("renamed.png"))
    assert len(join(cache, data)["train"].samples) == 29
    bad[1].write_bytes(b"broken in another way since")
    with pytest.raises(CacheMismatch, match="lacks 1 of 44 images"):
        join(cache, data, "train", "val")


def test_nothing_is_said_where_nothing_is_left_out(
    tiny_data: Path, tiny_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert len(join(tiny_cache, tiny_data, skip_bad_images=True)["train"].samples) == 30
    assert caplog.text == ""


def test_an_image_that_is_merely_missing_is_never_left_out(
    tiny_cache: Path, data: Path, bad: list[Path], resealed: Resealed
) -> None:
    new = add_image(data)
    cache = resealed(tiny_cache, provenance=skipped(new, *bad))
    with pytest.raises(CacheMismatch, match=r"lacks 1 of 44 images \(first: .*new\.png\)"):
        join(cache, data, "train", "val", skip_bad_images=True)


@pytest.mark.parametrize(
    "listed", [5, "all", None, {}, [1], [None], [[]], [{}], [{"key": 3}], [{"key": ["00"], "reason": {"a": 1}}]]
)
def test_a_list_of_bad_images_that_is_nonsense_does_no_harm(
    listed: Any, tiny_data: Path, tiny_cache: Path, data: Path, bad: list[Path], resealed: Resealed
) -> None:
    cache = resealed(tiny_cache, provenance={"skipped": listed})
    assert len(join(cache, tiny_data)["train"].samples) == 30
    with pytest.raises(CacheError, match="lacks 1 of 30 images"):
        join(cache, data)
    assert len(join(cache, data, skip_bad_images=True)["train"].samples) == 29


def test_the_command_in_an_error_can_be_pasted_into_a_shell(tiny_cache: Path, data: Path, tmp_path: Path) -> None:
    spaced = data.rename(tmp_path / "my images")
    cache = Path(shutil.copy(tiny_cache, tmp_path / "it's a cache.h5"))
    path = next(spaced.glob("train/*/*.png"))
    path.with_name("new.png").write_bytes(path.read_bytes() + bytes(1))
    with pytest.raises(CacheMismatch) as caught:
        join(cache, spaced)
    command = shlex.split(str(caught.value).split("`")[1])
    assert command[:6] == ["softlabel", "cache", "build", str(spaced), "-o", str(cache)]


def test_a_cache_of_other_classes_and_images_does_not_advise_what_cannot_help(tiny_cache: Path, data: Path) -> None:
    for path in data.rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    (data / "train" / "melanoma").rename(data / "train" / "freckle")
    with pytest.raises(CacheMismatch) as caught:
        join(tiny_cache, data)
    assert "does not know the classes freckle; it was built for" in str(caught.value)
    assert "knows none of the" in str(caught.value)
    assert "cache probe" not in str(caught.value)
