"""Samples meet their cached rows by content and class name, never by position or path."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import pipeline.joining
from cache import CacheError, CacheReader
from data.samples import FOLDER_TASK, scan_folder
from data.views import ViewPolicy, draw
from pipeline.targets import TeacherTargets


def join(cache: Path, data: Path, split: str = "train") -> TeacherTargets:
    return pipeline.joining.join(CacheReader(cache), {split: scan_folder(data).of_split(split)}, str(data))[split]


def test_renamed_reordered_images_get_the_same_logits(tiny_data: Path, tiny_cache: Path, tmp_path: Path) -> None:
    renamed = shutil.copytree(tiny_data, tmp_path / "renamed")
    for number, path in enumerate(sorted(renamed.glob("train/*/*.png"), reverse=True)):
        path.rename(path.with_name(f"patient-{number:03}.png"))
    one, other = join(tiny_cache, tiny_data), join(tiny_cache, renamed)
    assert [s.key for s in one.samples] == [s.key for s in other.samples]
    np.testing.assert_array_equal(one.epoch_rows(0, 0), other.epoch_rows(0, 0))


def test_each_row_belongs_to_the_sample_it_is_given_for(tiny_data: Path, tiny_cache: Path) -> None:
    targets = join(tiny_cache, tiny_data)
    rows = targets.epoch_rows(1, 7)
    for item, row in zip(targets.items(rows), rows, strict=True):
        view = int(targets.reader.view[row])
        np.testing.assert_array_equal(item.params, draw(ViewPolicy(), item.sample.key, view, 0))


def test_a_cycle_of_epochs_shows_each_view_once(tiny_data: Path, tiny_cache: Path) -> None:
    targets = join(tiny_cache, tiny_data)
    views = targets.reader.view[np.stack([targets.epoch_rows(epoch, 0) for epoch in range(3)])]
    assert (np.sort(views, axis=0) == np.array([0, 1, 2])[:, None]).all()
    assert 0 < (views[0] == 0).mean() < 1, "epoch 0 must not be all clean"


def test_labels_are_columns_of_the_cache_by_name(tiny_data: Path, tiny_cache: Path) -> None:
    targets = join(tiny_cache, tiny_data)
    classes = targets.reader.tasks[FOLDER_TASK]
    assert [classes[i] for i in targets.labels_N] == [s.labels[FOLDER_TASK] for s in targets.samples]


def test_missing_images_are_counted_with_the_command_that_adds_them(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    more = shutil.copytree(tiny_data, tmp_path / "more")
    source = next(more.glob("train/*/*.png"))
    source.with_name("new.png").write_bytes(source.read_bytes() + b"\0")
    with pytest.raises(CacheError, match=r"lacks 1 of 31 images \(first: .*new\.png\): run `softlabel cache build"):
        join(tiny_cache, more)


def test_a_copy_with_other_bytes_is_told_apart_from_missing_images(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_data, tmp_path / "reencoded")
    for path in other.glob("*/*/*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CacheError, match="other bytes"):
        join(tiny_cache, other)


def test_a_class_that_the_cache_does_not_know_is_named(tiny_data: Path, tiny_cache: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_data, tmp_path / "other")
    (other / "train" / "melanoma").rename(other / "train" / "freckle")
    with pytest.raises(CacheError, match="does not know the classes freckle"):
        join(tiny_cache, other)


def test_the_witness_notices_other_views(tiny_data: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = join(tiny_cache, tiny_data)
    targets.check_witness(32, 0)
    from pipeline import targets as module

    render = module.render
    monkeypatch.setattr(module, "render", lambda *arguments: render(*arguments).flip(-1))
    with pytest.raises(CacheError, match="renders to another view than the teacher saw"):
        targets.check_witness(32, 0)
