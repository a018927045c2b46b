"""No number of a run depends on where its pixels come from, on who filled the files, or on who loads."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache import CacheReader
from cache.errors import CacheMismatch
from data.pixels import source
from data.pixels.slots import SlotFile
from pipeline.runs import RunFolder
from pipeline.train import train
from pipeline.training.config import TrainConfig
from pipeline.training.pixels import CHOICES, PixelOptions
from pipeline.training.trainer import Trainer

from .run_metrics import metrics

CONFIG = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=2, batch_size=8)
Cli = Callable[..., tuple[int, str, str]]


def run(
    data: Path,
    cache: Path | list[Path],
    out: Path,
    choice: str,
    folder: Path,
    config: TrainConfig = CONFIG,
    **more: Any,
) -> Path:
    options = {"workers": 0, "report": False, "anyway": True, **more}
    return train(data, cache, out, config, pixels=PixelOptions(choice=choice, folder=folder), **options).path


def assert_same(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(path / name, weights_only=True)["model"] for path in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(weights, b[key]) for key, weights in a.items())


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_is_the_same_with_every_choice(
    choice: str, tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    for number in range(2 if choice == "views" else 1):  # the second one finds the file filled
        found = run(tiny_data, tiny_cache, tmp_path / f"run {number}", choice, tmp_path / "pixels")
        assert_same(found, tiny_run)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_views": 2, "sampler": "balanced", "target": "mean"},
        {"teacher": False, "fresh_views": True},
    ],
    ids=str,
)
def test_so_it_is_with_every_way_to_choose_views(
    settings: dict[str, Any], tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, **settings)
    kept = "decoded" if config.fresh_views else "views"
    plain = run(tiny_data, tiny_cache, tmp_path / "plain", "jpeg", tmp_path, config)
    assert_same(run(tiny_data, tiny_cache, tmp_path / "kept", kept, tmp_path / "pixels", config), plain)


def test_a_resumed_run_may_take_its_pixels_from_elsewhere_and_its_workers_too(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Trainer._save

    def interrupted(self: Trainer) -> None:
        save(self)
        if self._epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_data, tiny_cache, tmp_path / "run", "jpeg", tmp_path / "pixels")
    monkeypatch.undo()
    again = run(tiny_data, tiny_cache, tmp_path / "run", "views", tmp_path / "pixels", resume=True, workers=1)
    assert_same(again, tiny_run)


def test_views_of_several_caches_are_those_of_their_union(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, resealed: Callable[..., Path]
) -> None:
    """The cache in two halves, by sample; rows of both are numbered as those of the whole."""

    def half(first: bool) -> Callable[[Any], Any]:
        def change(table: Any) -> Any:
            n_samples = len(table.key)
            chosen = np.arange(n_samples // 2) if first else np.arange(n_samples // 2, n_samples)
            begin, end = int(table.first_row[chosen[0]]), int(table.first_row[chosen[-1] + 1])
            return dataclasses.replace(
                table, key=table.key[chosen], first_row=table.first_row[chosen[0] : chosen[-1] + 2] - begin,
                view=table.view[begin:end], params=table.params[begin:end], witness=table.witness[begin:end],
                logits={task: values[begin:end] for task, values in table.logits.items()},
                features={name: values[begin:end] for name, values in table.features.items()},
                names=None if table.names is None else [table.names[i] for i in chosen],
            )  # fmt: skip

        return change

    parts = [resealed(tiny_cache, half(first), name=f"{first}.h5") for first in (True, False)]
    pixels = tmp_path / "pixels"
    assert_same(run(tiny_data, parts, tmp_path / "of union", "views", pixels), tiny_run)
    assert_same(run(tiny_data, tiny_cache, tmp_path / "of one", "views", pixels), tiny_run)
    assert len(list(pixels.iterdir())) == 1, "the union has the ids of the file that a merge would write"


def test_wrong_pixels_of_a_file_are_noticed_by_the_witness(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that says it is ours and holds sound slots of other views."""
    write = SlotFile.write

    def mirrored(self: SlotFile, slot: int, content: memoryview) -> None:
        write(
            self, slot, memoryview(np.frombuffer(content, np.uint8).reshape(32, 32, 3)[:, ::-1].copy().reshape(-1).data)
        )

    monkeypatch.setattr(SlotFile, "write", mirrored)
    config = dataclasses.replace(CONFIG, epochs=3)
    with pytest.raises(CacheMismatch, match="renders to another view than the teacher saw"):
        run(tiny_data, tiny_cache, tmp_path / "run", "views", tmp_path / "pixels", config)
    assert RunFolder(tmp_path / "run").load_last()["epoch"] == 1, "all views were written in the first epoch"
    with pytest.raises(CacheMismatch, match="renders to another view than the teacher saw"):
        run(tiny_data, tiny_cache, tmp_path / "next", "views", tmp_path / "pixels", config)


def test_files_that_are_removed_while_a_run_reads_them_are_missed_by_nobody(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Trainer._save

    def remove(self: Trainer) -> None:
        save(self)
        if self._epoch == 1:
            shutil.rmtree(tmp_path / "pixels")

    monkeypatch.setattr(Trainer, "_save", remove)
    assert_same(run(tiny_data, tiny_cache, tmp_path / "run", "views", tmp_path / "pixels"), tiny_run)


def test_a_disk_that_fills_up_with_pixels_does_not_end_the_run(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def full(fd: int, content: memoryview, offset: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.pixels.slots._pwrite", full)
    assert_same(run(tiny_data, tiny_cache, tmp_path / "run", "views", tmp_path / "pixels"), tiny_run)
    assert caplog.text.count("pixels are no longer kept in") == 1


def test_all_views_that_will_be_shown_are_rendered_in_the_first_epoch(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = 0
    render = source.render

    def counted(*arguments: Any) -> Any:
        nonlocal rendered
        rendered += 1
        return render(*arguments)

    monkeypatch.setattr(source, "render", counted)
    config = dataclasses.replace(CONFIG, epochs=4)
    run(tiny_data, tiny_cache, tmp_path / "run", "auto", tmp_path / "pixels", config)
    n_shown = 30 * 3 + 15  # three views of each train image, the clean one of each that validates
    assert n_shown <= rendered <= n_shown + 32, "those that are compared before the first step are not kept"
    rendered = 0
    run(tiny_data, tiny_cache, tmp_path / "again", "auto", tmp_path / "pixels", dataclasses.replace(config, seed=1))
    assert rendered == 0


def test_the_command_takes_the_words_and_says_what_it_took(
    cli: Cli, tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    cache = shutil.copy(tiny_cache, tmp_path / "t.h5")
    words = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 2, "--batch-size", 8, "--anyway")
    words += ("--no-report", "--workers", 0)
    code, _, err = cli("train", tiny_data, cache, "-o", tmp_path / "run", *words, "--pixels", "views")
    assert code == 0, err
    assert f"rendered views at 32 px, 0.3 MB in {tmp_path}/t.h5.pixels/views-32px-warp-" in err
    assert metrics(tmp_path / "run") == metrics(tiny_run)
    code, _, err = cli("train", tiny_data, cache, "-o", tmp_path / "two", *words, "--pixels", "views", "--pixels-gb", 0)
    assert code == 1
    assert "Error: --pixels views: views would take 0.3 MB, and --pixels-gb is 0: --pixels-gb 0.1 allows them" in err
    assert not (tmp_path / "two").exists()
    assert RunFolder(tmp_path / "run").load_last()["config"].keys().isdisjoint({"pixels", "pixels_gb", "choice"})


def test_a_cache_of_a_reader_who_may_not_write_beside_it_has_its_pixels_elsewhere(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.training.pixels._can_write", lambda folder: False)
    cache = Path(shutil.copy(tiny_cache, tmp_path / "t.h5"))
    pixels = PixelOptions(choice="views", fallback=tmp_path / "of the user")
    with caplog.at_level(logging.INFO):
        train(tiny_data, cache, tmp_path / "run", CONFIG, workers=0, report=False, pixels=pixels)
    assert [path.name[:11] for path in (tmp_path / "of the user").iterdir()] == ["views-32px-"]
    assert not (tmp_path / "t.h5.pixels").exists()
    assert CacheReader(cache).cache_id
    assert metrics(tmp_path / "run") == metrics(tiny_run)
