"""SIGKILL in the middle of an epoch, between epochs and within a write: what follows is as if undisturbed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cache import durable
from cache.errors import CacheBusy
from pipeline.errors import RunError
from pipeline.runs import RunFolder
from pipeline.train import saved_config, train

from .run_metrics import metrics

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its cases")

# Two epochs of four steps; last.pt is written before the first and after each.
CASES = [
    ("after step", 2), ("after step", 7), ("before step", 5), ("within last.pt", 2), ("within last.pt", 3),
    ("before best.pt", 1), ("within metrics.csv", 3),
]  # fmt: skip


@pytest.fixture(scope="module")
def killed(tiny_data: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one killed run for each of CASES, by its number."""
    runs = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("killed_run.py")
    words = [word for step, count in CASES for word in (step, str(count))]
    found = subprocess.run(
        [sys.executable, script, tiny_data, tiny_cache, runs, *words], capture_output=True, text=True, timeout=300
    )
    assert found.stdout.split() == [str(-signal.SIGKILL)] * len(CASES), found.stderr
    return runs


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{step} {count}" for step, count in CASES])
def test_a_killed_run_goes_on_to_the_numbers_of_an_undisturbed_one(
    number: int, killed: Path, tiny_data: Path, tiny_cache: Path, tiny_run: Path
) -> None:
    run = killed / str(number)
    train(tiny_data, tiny_cache, run, saved_config(run), resume=True, workers=0)
    assert metrics(run) == metrics(tiny_run)
    one, other = RunFolder(run).load_last(), RunFolder(tiny_run).load_last()
    for part in ("model", "ema"):
        assert all(torch.equal(weights, other[part][name]) for name, weights in one[part].items())
    assert {path.name for path in run.iterdir()} == {path.name for path in tiny_run.iterdir()}, "nothing is left over"


def test_a_run_killed_before_its_first_state_starts_anew(
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "lock").write_text("host away pid 1\n")
    durable.temp_name(run / "last.pt").write_bytes(b"half")
    with pytest.raises(RunError, match="start one without --resume"):
        train(tiny_data, tiny_cache, run, saved_config(tiny_run), resume=True, workers=0)
    train(tiny_data, tiny_cache, run, saved_config(tiny_run), workers=0)
    assert metrics(run) == metrics(tiny_run)


def test_two_processes_never_write_one_run(tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    with RunFolder(run).held(), pytest.raises(CacheBusy, match="another process is writing this output"):
        train(tiny_data, tiny_cache, run, saved_config(run), resume=True, workers=0)
