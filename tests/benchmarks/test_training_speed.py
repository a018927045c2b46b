"""The benchmarks of stage two's speed, in small: they run, and measure what they say."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LoadScript = Callable[[str], Any]


def test_a_step_with_torch_as_it_comes_is_timed(load_script: LoadScript) -> None:
    """Ours would tune the allocator of the process that runs the tests."""
    bare_step = load_script("bare_step")
    assert bare_step.milliseconds(bare_step.plain("shufflenet_v2_x0_5", 32, 2), 1) > 0


def test_soft_targets_cost_something(run_script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
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
