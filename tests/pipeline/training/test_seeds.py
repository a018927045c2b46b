"""Several seeds: a run folder each, their mean and spread, and going on where a seed was interrupted."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import OutputExists, RunError
from pipeline.runs import RunFolder
from pipeline.train import train
from pipeline.training.config import TrainConfig
from pipeline.training.seeds import train_seeds

Cli = Callable[..., tuple[int, str, str]]
CONFIG = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=1, batch_size=8, seed=3)


@pytest.fixture
def run(tiny_data: Path, tiny_cache: Path) -> Callable[[Path, TrainConfig, bool], object]:
    def run(folder: Path, config: TrainConfig, resume: bool) -> object:
        return train(tiny_data, tiny_cache, folder, config, resume=resume, workers=0, report=False)

    return run


def test_seeds_differ_and_their_mean_and_spread_are_written(
    run: Callable[[Path, TrainConfig, bool], object], tmp_path: Path
) -> None:
    stopped = 0

    def interrupted(folder: Path, config: TrainConfig, resume: bool) -> object:
        nonlocal stopped
        stopped += 1
        if stopped == 2:
            raise KeyboardInterrupt
        return run(folder, config, resume)

    with pytest.raises(KeyboardInterrupt):
        train_seeds(tmp_path / "runs", CONFIG, 3, interrupted, resume=False)
    assert not (tmp_path / "runs" / "seeds.json").exists()
    first = (tmp_path / "runs" / "seed-3" / "last.pt").read_bytes()
    with pytest.raises(OutputExists, match="--resume"):
        train_seeds(tmp_path / "runs", CONFIG, 3, run, resume=False)

    result = train_seeds(tmp_path / "runs", CONFIG, 3, run, resume=True)
    assert (tmp_path / "runs" / "seed-3" / "last.pt").read_bytes() == first, "a finished seed stays as it is"
    losses = [RunFolder(tmp_path / "runs" / f"seed-{s}").load_last()["metrics"][0]["val_loss"] for s in (3, 4, 5)]
    assert len(set(losses)) == 3
    assert result.mean_and_spread("val_loss") == (statistics.mean(losses), statistics.stdev(losses))
    written = json.loads((tmp_path / "runs" / "seeds.json").read_text())
    assert written["seeds"] == [3, 4, 5]
    assert written["best_epochs"]["val_loss"] == {"mean": statistics.mean(losses), "std": statistics.stdev(losses)}


def test_the_command_prints_mean_and_spread_and_the_flags_are_asked_for_again(
    cli: Cli, tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    words = ("train", tiny_data, tiny_cache, "-o", tmp_path / "runs", "--workers", 0)
    small = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1)
    code, out, err = cli(*words, *small, "--seeds", 2)
    assert code == 0, err
    assert f"{tmp_path / 'runs'}: 2 seeds, val macro F1 0." in out
    assert " +- " in out
    code, _, err = cli(*words, "--resume")
    assert (code, "pass --seeds as well" in err) == (1, True)
    code, out, err = cli(*words, "--resume", "--seeds", 2)
    assert code == 0, err
    assert "2 seeds" in out


def test_a_single_run_is_not_taken_for_several(
    tiny_run: Path, run: Callable[[Path, TrainConfig, bool], object]
) -> None:
    with pytest.raises(RunError, match="go on with it without --seeds"):
        train_seeds(tiny_run, CONFIG, 2, run, resume=True)
