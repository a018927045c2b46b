"""The folder of a fit: never a teacher before it is finished, and whole after any kill or full disk."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from cache import durable
from cache.errors import CacheDiskFull
from pipeline.errors import RunError, TeacherError
from pipeline.fit import folder as module
from pipeline.fit.folder import FitFolder, fitted_on

KEYS = [b"\xab" * 16, b"\xcd" * 16]


def checkpoint(epoch: int, best_epoch: int) -> dict[str, Any]:
    row = dict.fromkeys(module.METRIC_COLUMNS, 0.5)
    return {
        "format": 1, "epoch": epoch, "best": {"epoch": best_epoch, "macro_f1": 0.5}, "start": {"macro_f1": 0.1},
        "metrics": [{**row, "epoch": n + 1} for n in range(epoch)], "config": {"epochs": 2}, "prompts": {},
        "ids": {}, "run_on": {}, "weights": {"w": torch.full((50,), float(epoch))}, "steps": {},
    }  # fmt: skip


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`kill_at(n)`: the n-th renaming of a file does not happen any more."""
    publish = durable.publish_replace

    def kill_at(n_files: int) -> None:
        done = 0

        def dying(temp: Path, final: Path) -> None:
            nonlocal done
            done += 1
            if done == n_files:
                raise Killed
            publish(temp, final)

        monkeypatch.setattr(durable, "publish_replace", dying)

    return kill_at


@pytest.fixture
def write_teacher(tiny_teacher: Path) -> Callable[[Path], None]:
    return lambda folder: shutil.copytree(tiny_teacher, folder, dirs_exist_ok=True) and None


def loads(folder: Path) -> bool:
    try:
        AutoModel.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


def n_published(teacher: Path) -> Iterator[int]:
    """1 is fitted_on.json, then comes each file of the teacher."""
    return iter(range(1, 2 + len(list(teacher.iterdir()))))


def test_a_kill_at_any_file_leaves_no_teacher_and_everything_to_go_on_from(
    tmp_path: Path, tiny_teacher: Path, kill_at: Callable[[int], None], write_teacher: Callable[[Path], None]
) -> None:
    steps = list(n_published(tiny_teacher))
    for step in steps:
        folder = FitFolder(tmp_path / str(step))
        folder.save(checkpoint(2, 1))
        kill_at(step)
        with pytest.raises(Killed):
            folder.publish(write_teacher, KEYS)
        assert not folder.is_finished()
        assert not loads(folder.path)
        assert folder.load_last()["epoch"] == 2
        kill_at(-1)
        folder.publish(write_teacher, KEYS)
        assert folder.is_finished()
        assert loads(folder.path)
        assert fitted_on(folder.path) == set(KEYS)
        assert not [path for path in folder.path.iterdir() if path.suffix in (".pt", ".tmp")]
    assert len(steps) > 4


def test_the_old_or_the_new_checkpoint_stands_after_a_kill_and_the_rest_follows(
    tmp_path: Path, kill_at: Callable[[int], None]
) -> None:
    for step, epoch in ((1, 1), (2, 2), (3, 2), (4, 2)):  # last.pt, best.pt, fit_metrics.csv, fit_config.json
        folder = FitFolder(tmp_path / str(step))
        kill_at(-1)
        folder.save(checkpoint(1, 1))
        kill_at(step)
        with pytest.raises(Killed):
            folder.save(checkpoint(2, 2))
        kill_at(-1)
        last = folder.load_last()
        assert last["epoch"] == epoch
        folder.follow(last)
        assert torch.equal(folder.load_best()["w"], torch.full((50,), float(epoch)))
        assert len((folder.path / "fit_metrics.csv").read_text().splitlines()) == 1 + epoch
        assert json.loads(folder.config.read_text())["best"]["epoch"] == epoch


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = FitFolder(tmp_path)
    folder.save(checkpoint(1, 1))
    half = [durable.temp_name(folder.last), durable.temp_name(folder.best), tmp_path / "teacher.tmp" / "x"]
    (tmp_path / "teacher.tmp").mkdir()
    for path in (*half, tmp_path / "mine.tmp"):
        path.write_text("half")
    folder.drop_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {
        "last.pt", "best.pt", "fit_metrics.csv", "fit_config.json", "mine.tmp",
    }  # fmt: skip


def test_a_full_disk_leaves_the_old_checkpoint_and_names_the_bytes(
    tmp_path: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    folder = FitFolder(tmp_path)
    folder.save(checkpoint(1, 1))
    before = folder.last.read_bytes()
    for limit in (100, len(before) - 1):
        with file_limit(limit), pytest.raises(CacheDiskFull, match=r"no room for [\d,]{4,} bytes"):
            folder.save(checkpoint(2, 2))
        assert folder.last.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_while_the_teacher_is_written_loses_nothing(
    tmp_path: Path, tiny_teacher: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    folder = FitFolder(tmp_path)
    folder.save(checkpoint(2, 2))
    model = AutoModel.from_pretrained(tiny_teacher, local_files_only=True)
    with file_limit(100_000), pytest.raises(CacheDiskFull, match=r"last\.pt"):
        folder.publish(model.save_pretrained, KEYS)
    assert not folder.is_finished()
    assert folder.load_last()["epoch"] == 2


def test_a_disk_with_too_little_room_is_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(2_000, 1_000, 999) if folder == tmp_path else None)
    FitFolder(tmp_path / "new" / "teacher").check_room(100, 500)
    with pytest.raises(CacheDiskFull, match=r"up to 1,000 bytes until the fit is finished, 999 are free"):
        FitFolder(tmp_path / "new" / "teacher").check_room(125, 500)


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    folder = FitFolder(tmp_path)
    folder.save(checkpoint(1, 1))
    folder.last.write_bytes(folder.last.read_bytes()[:-50])
    for memory_map in (False, True):
        with pytest.raises(RunError, match=r"last\.pt is damaged .*; fit this teacher anew"):
            folder.load_last(memory_map=memory_map)
    torch.save({"format": 99}, folder.last)
    with pytest.raises(RunError, match="not a checkpoint of format 1"):
        folder.load_last()


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "keys": []}', '{"format": 1, "keys": ["x"]}'])
def test_a_list_of_fitted_images_that_cannot_be_read_is_told_not_ignored(text: str, tmp_path: Path) -> None:
    (tmp_path / "fitted_on.json").write_text(text)
    with pytest.raises(TeacherError, match=r"fitted_on\.json is damaged"):
        fitted_on(tmp_path)
    assert fitted_on(tmp_path / "elsewhere") is None
