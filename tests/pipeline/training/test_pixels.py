"""Which files of pixels are taken: what pays and fits, and why not what does not."""

from __future__ import annotations

import dataclasses
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.joining
from cache import CacheReader
from data.scan import scan_data
from pipeline.errors import SettingError
from pipeline.targets import TeacherTargets
from pipeline.training import pixels as module
from pipeline.training.config import TrainConfig
from pipeline.training.pixels import ChosenPixels, PixelOptions, choose_pixels, shown_rows

CONFIG = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=20, batch_size=8)
N_SHOWN, VIEW_BYTES = 30 * 3 + 15, 3 * 32 * 32
Groups = dict[str, TeacherTargets]


@pytest.fixture(scope="module")
def groups(tiny_data: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Groups:
    """30 train images of 3 views each, 15 that validate; nothing lies beside the cache."""
    cache = shutil.copy(tiny_cache, tmp_path_factory.mktemp("alone") / "t.h5")
    images = scan_data(tiny_data)
    of_split = {split: images.of_split(split) for split in ("train", "val")}
    return dict(pipeline.joining.join(CacheReader(cache), of_split, [str(tiny_data)], images.classes))


def chosen(
    groups: Groups, folder: Path | None, *, config: dict[str, Any] | None = None, **options: Any
) -> ChosenPixels:
    given = PixelOptions(**{"folder": folder, **options})
    return choose_pixels(given, groups, dataclasses.replace(CONFIG, **(config or {})))


def test_views_are_kept_where_they_are_shown_often_and_fit(groups: Groups, tmp_path: Path) -> None:
    found = chosen(groups, tmp_path)
    assert found.choice == "views"
    assert found.line.startswith(f"{N_SHOWN} rendered views at 32 px, 0.3 MB in {tmp_path}/views-32px-warp-")
    assert found.line.endswith(", 0% there already; --pixels jpeg takes no disk")
    assert list(tmp_path.iterdir()) == [], "choosing makes nothing"


def test_a_run_of_few_epochs_keeps_nothing_but_takes_what_is_there(groups: Groups, tmp_path: Path) -> None:
    few = {"epochs": 3}
    assert chosen(groups, tmp_path, config=few).choice == "jpeg"
    assert "--pixels views keeps the views for other runs" in chosen(groups, tmp_path, config=few).line
    kept = chosen(groups, tmp_path)
    kept.source.begin()
    rows = np.arange(30)
    kept.source.batch(groups["train"].items(groups["train"].epoch_rows(0, 0)).part(rows))
    found = chosen(groups, tmp_path, config=few)
    assert found.choice == "views"
    assert "% there already" in found.line


def test_views_that_do_not_fit_give_way_to_decoded_images_and_these_to_the_files(
    groups: Groups, tmp_path: Path
) -> None:
    gigabytes = N_SHOWN * VIEW_BYTES / 1e9
    images_gb = 45 * (48 * 48 * 3 + 8) / 1e9
    assert chosen(groups, tmp_path, limit_gb=gigabytes).choice == "views"
    large = {"student_size_px": 64}
    found = chosen(groups, tmp_path, config=large, limit_gb=images_gb)
    assert found.choice == "decoded"
    assert "(views would take 1.3 MB, and --pixels-gb is 0.0003" in found.line
    assert "--pixels-gb 0.1 allows them)" in found.line
    found = chosen(groups, tmp_path, config=large, limit_gb=images_gb * 0.99)
    assert found.choice == "jpeg"
    assert "decoded images would take 0.3 MB" in found.line


def test_fresh_views_are_rendered_out_of_decoded_images(groups: Groups, tmp_path: Path) -> None:
    fresh = {"teacher": False, "fresh_views": True}
    assert chosen(groups, tmp_path, config=fresh).choice == "decoded"
    with pytest.raises(SettingError, match="no fresh view is shown twice"):
        chosen(groups, tmp_path, config=fresh, choice="views")


@pytest.mark.parametrize(("choice", "what"), [("views", "views"), ("decoded", "decoded images")])
def test_what_was_asked_for_and_does_not_fit_ends_with_the_budget_that_allows_it(
    choice: str, what: str, groups: Groups, tmp_path: Path
) -> None:
    with pytest.raises(SettingError) as refused:
        chosen(groups, tmp_path, choice=choice, limit_gb=0)
    assert str(refused.value).startswith(
        f"--pixels {choice}: {what} would take 0.3 MB, and --pixels-gb is 0: --pixels-"
    )
    assert str(refused.value).endswith("gb 0.1 allows them")
    allowed = float(str(refused.value).split()[-3])
    assert chosen(groups, tmp_path, choice=choice, limit_gb=allowed).choice == choice


def test_half_of_the_free_disk_is_left_alone(groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**9, 0, 2 * N_SHOWN * VIEW_BYTES))
    assert chosen(groups, tmp_path).choice == "views"
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10**9, 0, 2 * N_SHOWN * VIEW_BYTES - 1))
    with pytest.raises(SettingError, match=r"more than half of the 0.6 MB that are free in .*: free some, or name"):
        chosen(groups, tmp_path, choice="views")
    kept = chosen(groups, tmp_path / "b", choice="jpeg")
    assert kept.choice == "jpeg"


def test_no_folder_that_can_be_written_to_is_no_error(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_can_write", lambda folder: False)
    assert chosen(groups, None).choice == "jpeg"
    assert chosen(groups, None, fallback=tmp_path).choice == "views"
    with pytest.raises(SettingError, match="name one by --pixels-dir"):
        chosen(groups, None, choice="decoded")


def test_the_rows_that_are_shown_are_all_views_that_take_part_and_clean_ones(groups: Groups) -> None:
    reader = groups["train"].reader
    for n_views, n_shown in ((0, N_SHOWN), (2, 30 * 2 + 15)):
        rows = shown_rows(groups, n_views)
        assert len(rows) == n_shown
        shown = {int(row) for epoch in range(6) for row in groups["train"].epoch_rows(epoch, 0, n_views=n_views)}
        assert shown | set(groups["val"].clean_rows().tolist()) == set(rows.tolist())
    assert len(reader.view) > N_SHOWN


@pytest.mark.parametrize(("options", "said"), [({"choice": "png"}, "one of auto, jpeg"), ({"limit_gb": -1}, "got -1")])
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        PixelOptions(**options)
