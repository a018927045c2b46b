"""The benchmarks of stage two's speed, in small: they run, and measure what they say."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LoadScript = Callable[[str], Any]


RunScript = Callable[..., subprocess.CompletedProcess[str]]


def test_a_step_of_ours_and_one_with_torch_as_it_comes_are_timed(run_script: RunScript) -> None:
    small = ("--case", "x0.5 at 96 px", "--batch-size", 2, "--rounds", 1, "--seconds", 0.01)
    done = run_script("bare_step", *small)
    assert done.returncode == 0, done.stderr
    assert "| x0.5 at 96 px | torch as it comes |" in done.stdout


def test_ranks_are_timed_beside_one_process(run_script: RunScript, tmp_path: Path) -> None:
    done = run_script("ranks", tmp_path, "--smoke")
    assert done.returncode == 0, done.stderr
    assert "| build, views/s |" in done.stdout
    assert "| train, images/s |" in done.stdout


def test_soft_targets_cost_something(run_script: RunScript) -> None:
    done = run_script("soft_target_cost", "--samples", 300, "--batch-size", 16, "--batches", 5, "--rounds", 2)
    assert done.returncode == 0, done.stderr
    assert "| soft targets' extra |" in done.stdout


def test_a_start_ends_with_its_first_step_and_each_part_comes_after_the_one_before(
    load_script: LoadScript, tiny_data: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = load_script("start_up").first_step(tiny_data, tiny_cache, ["--pixels", "jpeg"])
    assert list(found)[-2:] == ["first batch", "first step"]
    assert list(found.values()) == sorted(found.values())


def test_the_speed_of_several_seeds_is_read_from_their_runs(
    load_script: LoadScript, tiny_data: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    several_seeds = load_script("several_seeds")
    monkeypatch.setitem(several_seeds.CASES, "tiny", ("shufflenet_v2_x0_5", 32))
    assert several_seeds.images_per_s(tiny_data, tiny_cache, "tiny", 2, 1) > 0
