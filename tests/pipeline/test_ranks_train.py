"""`train` by several ranks: the losses and scores of one process, whatever the shards, the kills and the restarts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data.options import ScanOptions
from pipeline.runs import RunFolder
from pipeline.train import TrainConfig, saved_config, train

from .conftest import TwoTasks
from .run_metrics import metrics

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its ranks")

EPOCHS = 3
# Small and well conditioned: rounding grows in networks with norms over six pixels, in one process as in several.
STUDENT = """
import torch
from torch import nn

def build(n_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, n_classes),
    )
"""
FEW = ScanOptions(only=("melanoma", "melanocytic nevus"), max_per_class=1)
Runs = tuple[Path, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student of one's own."""
    path = tmp_path_factory.mktemp("student") / "net.py"
    path.write_text(STUDENT)
    return f"{path}:build"


def config_of(student: str, **more: Any) -> TrainConfig:
    # Batches of 8, 8, 7 and 7: no two ranks have as much of all of them. Gradients are clipped in every step.
    settings = {"student": student, "student_size_px": 32, "epochs": EPOCHS, "batch_size": 8, "clip_norm": 0.5}
    return TrainConfig(**{**settings, **more})


def words_of(config: TrainConfig) -> list[str]:
    named = {
        "--student": config.student, "--student-size": 32, "--epochs": config.epochs, "--batch-size": config.batch_size,
        "--clip-norm": config.clip_norm, "--lr": config.lr_peak, "--optimizer": config.optimizer,
        "--class-weights": config.class_weights, "--device": "cpu", "--workers": 0, "--threads": 1,
    }  # fmt: skip
    return [*(str(word) for pair in named.items() for word in pair), "--no-report", "--anyway"]


@pytest.fixture(scope="module")
def runs(
    student: str, tiny_data: Path, tiny_cache: Path, two_tasks: TwoTasks, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    """(folder, run -> exit codes of each attempt, standard output and error of all ranks)."""
    folder = tmp_path_factory.mktemp("ranks")

    def case(name: str, n: int, config: TrainConfig | None = None, **more: Any) -> dict[str, Any]:
        of_config = words_of(config or config_of(student))
        words = ["train", str(tiny_data), str(tiny_cache), "-o", str(folder / name), *of_config]
        return {"n": n, "words": words, **more}

    tasks = case("tasks", 2, config_of(student, class_weights="auto"))
    tasks["words"][2] = str(two_tasks.cache)
    tasks["words"] += two_tasks.words
    # Step 6 is in the second epoch of four steps.
    cases = {
        "two": case("two", 2), "small": case("small", 3), "tasks": tasks,
        "restarted": case("restarted", 2, kill=[1, "step", 6], restarts=1),
        "interrupted": case("interrupted", 2, interrupt=[1, "step", 6]),
        "infinite": case("infinite", 2, config_of(student, lr_peak=10, clip_norm=0, optimizer="sgd")),
        "seeds": {"n": 2, "words": [*case("seeds", 2)["words"], "--seeds", "2"]},
    }  # fmt: skip
    cases["small"]["words"] += FEW.words()
    (folder / "cases.json").write_text(json.dumps(list(cases.values())))
    command = [sys.executable, Path(__file__).with_name("rank_group.py"), folder / "cases.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(cases, json.loads(done.stdout), strict=True))


def alone(folder: Path, data: Path, cache: Path, config: TrainConfig, **more: Any) -> Path:
    return train(data, cache, folder, config, workers=0, report=False, anyway=True, device="cpu", **more).path


def assert_close(run: Path, expected: Path) -> None:
    rows, others = metrics(run), metrics(expected)
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        for name, value in other.items():
            if value:
                assert float(row[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-4), name


@pytest.fixture(scope="module")
def one_process(student: str, tiny_data: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that several ranks are to repeat."""
    return alone(tmp_path_factory.mktemp("alone") / "run", tiny_data, tiny_cache, config_of(student))


def test_ranks_have_the_losses_and_scores_of_one_process_and_the_same_best_epoch(runs: Runs, one_process: Path) -> None:
    folder, results = runs
    assert not any(results["two"]["codes"][0]), results["two"]["err"]
    assert_close(folder / "two", one_process)
    last, expected = RunFolder(folder / "two").load_last(), RunFolder(one_process).load_last()
    assert last["best"]["epoch"] == expected["best"]["epoch"]
    for part in ("model", "ema", "best_model"):
        assert last[part].keys() == expected[part].keys(), "names know of no ranks"
        for weights, (key, others) in zip(last[part].values(), expected[part].items(), strict=True):
            assert torch.allclose(weights.float(), others.float(), rtol=1e-3, atol=1e-4), (part, key)


def test_the_first_rank_alone_speaks_and_writes(runs: Runs) -> None:
    folder, results = runs
    found = results["two"]
    assert found["out"].count("best epoch") == 1
    assert found["err"].count("epoch   1/3") == 1
    assert "rank 1" not in found["err"]
    assert not (folder / "two" / "lock").exists()


def test_fewer_images_than_ranks_to_learn_from_and_to_validate_on_count_once(
    runs: Runs, student: str, tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    folder, results = runs
    assert not any(results["small"]["codes"][0]), results["small"]["err"]
    assert_close(folder / "small", alone(tmp_path / "run", tiny_data, tiny_cache, config_of(student), scan=FEW))


def test_tasks_with_labels_missing_are_weighed_over_the_whole_batch(
    runs: Runs, student: str, tiny_data: Path, two_tasks: TwoTasks, tmp_path: Path
) -> None:
    folder, results = runs
    assert not any(results["tasks"]["codes"][0]), results["tasks"]["err"]
    config = config_of(student, class_weights="auto")
    assert_close(folder / "tasks", alone(tmp_path / "run", tiny_data, two_tasks.cache, config, scan=two_tasks.scan))


def test_ranks_that_are_started_anew_go_on_to_the_numbers_of_undisturbed_ones(runs: Runs) -> None:
    folder, results = runs
    found = results["restarted"]
    assert found["codes"][0][1] == -9, found["err"]
    assert found["codes"][1:] == [[0, 0]], found["err"]
    assert "resumed  after epoch 1 of 3" in found["err"]
    assert metrics(folder / "restarted") == metrics(folder / "two")
    one, other = (RunFolder(folder / name).load_last()["model"] for name in ("restarted", "two"))
    assert all(torch.equal(weights, other[name]) for name, weights in one.items())


def test_ctrl_c_stops_all_ranks_and_one_process_may_go_on(
    runs: Runs, tiny_data: Path, tiny_cache: Path, one_process: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, results = runs
    found = results["interrupted"]
    assert found["codes"] == [[130, 130]], found["err"]
    assert "Traceback" not in found["err"]
    assert found["err"].count("Go on with:") == 1
    assert found["err"].strip().endswith("--resume")
    assert "torchrun --nproc-per-node 2 $(which softlabel) train" in found["err"]
    run = folder / "interrupted"
    caplog.set_level("INFO")
    alone(run, tiny_data, tiny_cache, saved_config(run), resume=True)
    assert "the run was of 2 ranks, and is of 1: last digits differ" in caplog.text
    assert_close(run, one_process)


def test_a_loss_that_is_infinite_ends_all_ranks_with_one_message(runs: Runs) -> None:
    _, results = runs
    found = results["infinite"]
    assert all(found["codes"][0]), found["err"]
    assert found["err"].count("Error: ") == 1, found["err"]
    assert "The usual cause is a learning rate that is too high" in found["err"]


def test_several_seeds_are_refused_with_what_does_it(runs: Runs) -> None:
    _, results = runs
    assert results["seeds"]["codes"][0][0] == 2
    assert results["seeds"]["err"].count("--seeds needs no torchrun: --at-once N") == 1
