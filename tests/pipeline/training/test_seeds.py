"""Several seeds: a run folder each, their mean and spread, and going on where a seed was interrupted."""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache import durable
from pipeline.errors import OutputExists, RunError
from pipeline.runs import RunFolder
from pipeline.train import saved_config, train
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
    again = train_seeds(tmp_path / "runs", dataclasses.replace(CONFIG, seed=5), 1, run, resume=True)
    assert [row["seed"] for row in again.rows] == [3, 4, 5], "the seeds of earlier calls count, too"
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


def test_seeds_that_differ_in_more_than_their_seed_are_refused(
    tiny_run: Path, run: Callable[[Path, TrainConfig, bool], object], tmp_path: Path
) -> None:
    """A finished seed is not trained again: its score would stand in a mean with those of other settings or caches."""
    config = saved_config(tiny_run)
    for seed in (0, 1):
        path = shutil.copytree(tiny_run, tmp_path / "runs" / f"seed-{seed}") / "last.pt"
        last = torch.load(path, weights_only=True)
        last["config"]["seed"] = seed
        last["ids"]["seal"] = f"of cache {seed}"
        torch.save(last, path)
    with pytest.raises(RunError, match=r"(?s)seed-0 was trained with other settings:.*alpha: the run has 0\.3"):
        train_seeds(tmp_path / "runs", replace(config, alpha=0.5), 3, run, resume=True)
    with pytest.raises(RunError, match="seed-1 learned from another cache than the seeds before it"):
        train_seeds(tmp_path / "runs", config, 2, run, resume=True)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"seed-0", "seed-1"}


def test_what_a_killed_start_left_is_no_run_to_go_on_with(
    cli: Cli, tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    first = tmp_path / "runs" / "seed-0"
    first.mkdir(parents=True)
    (first / "lock").touch()
    (first / f"last.pt.1{durable.TEMP_SUFFIX}").touch()
    code, _, err = cli("train", tiny_data, tiny_cache, "-o", tmp_path / "runs", "--seeds", 1, "--resume")
    assert (code, "start one without --resume" in err) == (1, True)

    def copied(folder: Path, config: TrainConfig, resume: bool) -> object:
        assert (folder, resume) == (first, False)
        return shutil.copytree(tiny_run, folder, dirs_exist_ok=True)

    assert train_seeds(tmp_path / "runs", saved_config(tiny_run), 1, copied, resume=False).rows[0]["seed"] == 0


def test_a_single_run_is_not_taken_for_several(
    tiny_run: Path, run: Callable[[Path, TrainConfig, bool], object]
) -> None:
    with pytest.raises(RunError, match="go on with it without --seeds"):
        train_seeds(tiny_run, CONFIG, 2, run, resume=True)
