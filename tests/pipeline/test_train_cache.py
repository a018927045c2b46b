"""A run beside a cache that is damaged, or that changes: refused, or ended with its old rows, and never mixed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache import Table
from cache.errors import CacheDamaged, CacheMismatch
from data.pixels import source
from data.pixels.source import PixelSource
from data.view_batches import ViewItem
from pipeline.errors import RunError
from pipeline.runs import RunFolder
from pipeline.train import TrainConfig, train
from pipeline.training.pixels import PixelOptions

from .run_metrics import metrics

CONFIG = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=2, batch_size=8)
RENDERED = PixelOptions(choice="jpeg")
"""Every view is rendered, whatever an earlier test has left beside the cache."""
AfterEpoch = Callable[[int, Callable[[], object]], None]


def assert_same_run(run: Path, other: Path) -> None:
    assert metrics(run) == metrics(other)
    one, two = (RunFolder(path).load_last()["model"] for path in (run, other))
    assert one.keys() == two.keys()
    assert all(torch.equal(weights, two[name]) for name, weights in one.items())


def assert_first_epoch_stands(run: Path, undisturbed: Path) -> None:
    assert RunFolder(run).load_last()["epoch"] == 1
    assert metrics(run) == metrics(undisturbed)[:1]


@pytest.fixture
def cache(tiny_cache: Path, tmp_path: Path) -> Path:
    """A copy of the cache, to be changed."""
    return Path(shutil.copy(tiny_cache, tmp_path / "t.h5"))


@pytest.fixture
def other_cache(tiny_cache: Path, resealed: Callable[..., Path]) -> Path:
    """A sound cache of the same recipe and sizes with other answers."""

    def change(table: Table) -> None:
        table.logits["class"][:] = table.logits["class"][::-1]

    return resealed(tiny_cache, change)


@pytest.fixture
def after_epoch(monkeypatch: pytest.MonkeyPatch) -> AfterEpoch:
    """`after_epoch(n, action)`: a run does it once, when epoch n is saved."""
    save = RunFolder.save

    def after_epoch(n_epochs: int, action: Callable[[], object]) -> None:
        def saving(self: RunFolder, checkpoint: dict[str, Any], card: Any) -> None:
            save(self, checkpoint, card)
            if checkpoint["epoch"] == n_epochs:
                monkeypatch.setattr(RunFolder, "save", save)
                action()

        monkeypatch.setattr(RunFolder, "save", saving)

    return after_epoch


@pytest.mark.parametrize("name", ["logits/0", "rows/params", "rows/witness"])
def test_training_refuses_a_cache_in_which_one_bit_is_off(
    name: str, tiny_data: Path, tiny_cache: Path, tmp_path: Path, flipped: Callable[..., Path]
) -> None:
    damaged = flipped(tiny_cache, name, 77)
    with pytest.raises(CacheDamaged, match=rf"flipped\.h5 is damaged in 1 block: {name} rows 0-119"):
        train(tiny_data, damaged, tmp_path / "run", CONFIG, workers=0, report=False)
    assert not (tmp_path / "run").exists()


def test_resuming_refuses_it_too_and_leaves_the_run_as_it_is(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, flipped: Callable[..., Path]
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(CacheDamaged, match="logits/0 rows 0-119"):
        train(tiny_data, flipped(tiny_cache, "logits/0"), run, CONFIG, resume=True, workers=0, report=False)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_views_that_go_wrong_in_a_later_epoch_stop_the_run_and_keep_the_epochs_before(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, after_epoch: AfterEpoch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    render = source.render

    def go_wrong() -> None:
        monkeypatch.setattr(source, "render", lambda *arguments: render(*arguments).flip(-1))

    after_epoch(1, go_wrong)
    with pytest.raises(CacheMismatch, match="renders to another view than the teacher saw"):
        train(tiny_data, tiny_cache, tmp_path / "run", CONFIG, workers=0, report=False, pixels=RENDERED)
    assert_first_epoch_stands(tmp_path / "run", tiny_run)
    monkeypatch.setattr(source, "render", render)
    train(tiny_data, tiny_cache, tmp_path / "run", CONFIG, resume=True, workers=0, report=False, pixels=RENDERED)
    assert_same_run(tmp_path / "run", tiny_run)


def test_validation_views_that_go_wrong_stop_the_run_as_well(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = PixelSource._render

    def wrong_for_validation(self: PixelSource, item: ViewItem, into_HWC: np.ndarray) -> None:
        made(self, item, into_HWC)
        if item.sample.split == "val":
            into_HWC[:] = into_HWC[:, ::-1].copy()

    monkeypatch.setattr(PixelSource, "_render", wrong_for_validation)
    with pytest.raises(CacheMismatch, match=r"/val/.* renders to another view than the teacher saw"):
        train(tiny_data, tiny_cache, tmp_path / "run", CONFIG, workers=0, report=False, pixels=RENDERED)
    assert RunFolder(tmp_path / "run").load_last()["epoch"] == 0


def test_a_cache_that_is_replaced_by_rename_is_trained_on_as_it_was(
    tiny_data: Path, cache: Path, other_cache: Path, tiny_run: Path, tmp_path: Path, after_epoch: AfterEpoch
) -> None:
    after_epoch(1, lambda: os.replace(other_cache, cache))
    train(tiny_data, cache, tmp_path / "run", CONFIG, workers=0, report=False)
    assert_same_run(tmp_path / "run", tiny_run)


def test_a_cache_that_is_removed_is_trained_on_as_it_was(
    tiny_data: Path, cache: Path, tiny_run: Path, tmp_path: Path, after_epoch: AfterEpoch
) -> None:
    after_epoch(1, cache.unlink)
    train(tiny_data, cache, tmp_path / "run", CONFIG, workers=0, report=False)
    assert_same_run(tmp_path / "run", tiny_run)


@pytest.mark.parametrize("kind", ["another cache", "emptied", "cut off", "no cache"])
def test_a_cache_that_is_written_over_in_place_ends_the_run_and_mixes_nothing(
    kind: str, tiny_data: Path, cache: Path, other_cache: Path, tiny_run: Path, tmp_path: Path, after_epoch: AfterEpoch
) -> None:
    sound = cache.read_bytes()
    content = {
        "another cache": other_cache.read_bytes(), "emptied": b"", "cut off": sound[:-1], "no cache": bytes(len(sound)),
    }[kind]  # fmt: skip
    after_epoch(1, lambda: cache.write_bytes(content))
    with pytest.raises(CacheDamaged, match=r"t\.h5 was replaced by another cache, or written over, while in use"):
        train(tiny_data, cache, tmp_path / "run", CONFIG, workers=0, report=False)
    assert_first_epoch_stands(tmp_path / "run", tiny_run)
    cache.write_bytes(sound)
    train(tiny_data, cache, tmp_path / "run", CONFIG, resume=True, workers=0, report=False)
    assert_same_run(tmp_path / "run", tiny_run)


def test_the_same_cache_copied_over_itself_disturbs_nobody(
    tiny_data: Path, cache: Path, tiny_run: Path, tmp_path: Path, after_epoch: AfterEpoch
) -> None:
    after_epoch(1, lambda: cache.write_bytes(cache.read_bytes()))
    train(tiny_data, cache, tmp_path / "run", CONFIG, workers=0, report=False)
    assert_same_run(tmp_path / "run", tiny_run)


def test_a_run_reads_its_cache_and_does_not_map_it(
    tiny_data: Path, cache: Path, tmp_path: Path, after_epoch: AfterEpoch
) -> None:
    """The system ends a process by a signal that touches a mapped page of a file which was cut off."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list what a process maps")

    def look() -> None:
        assert str(cache) not in maps.read_text()
        raise KeyboardInterrupt

    after_epoch(0, look)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, cache, tmp_path / "run", CONFIG, workers=0, report=False)


def test_a_cache_that_changes_between_start_and_resume_is_refused(
    tiny_data: Path, tiny_cache: Path, other_cache: Path, tmp_path: Path, after_epoch: AfterEpoch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    after_epoch(1, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_data, tiny_cache, tmp_path / "run", CONFIG, workers=0, report=False)
    before = (tmp_path / "run" / "last.pt").read_bytes()
    with pytest.raises(RunError, match="the cache was extended or rebuilt since"):
        train(tiny_data, other_cache, tmp_path / "run", CONFIG, resume=True, workers=0, report=False)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
