"""Runs in processes of their own at the same time: what they say, how one fails, how all are interrupted."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from pipeline.errors import RunError
from pipeline.training.config import TrainConfig
from pipeline.training.side_by_side import Job, run_side_by_side

log = logging.getLogger("pipeline.test_side_by_side")
LATER, FAILS, KILLED, WAITS = "later", "fails", "killed", "waits"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new processes import `act` from here, by its name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3])


def jobs(*whats: str, folder: Path) -> list[Job]:
    """Runs that do what they are called."""
    return [
        Job(what, folder / f"{number}-{what}", TrainConfig(seed=number), False) for number, what in enumerate(whats)
    ]


def act(folder: Path, config: TrainConfig, resume: bool) -> None:
    """What a run does here."""
    folder.mkdir()
    what = folder.name.partition("-")[2]
    while what == LATER and not [*folder.parent.glob(f"*-{FAILS}")]:
        time.sleep(0.02)
    time.sleep(0.5 if what == LATER else 0)
    log.info("%s of %d on %d threads", what, config.seed, torch.get_num_threads())
    if what == FAILS:
        raise RunError(f"seed {config.seed} failed")
    if what == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == WAITS:
        (folder / str(os.getpid())).touch()
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(60)
        (folder / "interrupted").touch()
        raise KeyboardInterrupt


def test_one_that_fails_lets_those_under_way_finish_and_begins_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each runs on its threads, and its lines begin with its name."""
    with caplog.at_level(logging.INFO), pytest.raises(RunError, match="seed 0 failed"):
        run_side_by_side(jobs(FAILS, LATER, LATER, folder=tmp_path), act, 2, 1)
    assert sorted(caplog.messages) == ["fails    fails of 0 on 1 threads", "later    later of 1 on 1 threads"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-fails", "1-later"]


def test_one_that_is_killed_is_told_with_what_goes_on(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"killed was ended from outside \(exit code -9\): go on with --resume"):
        run_side_by_side(jobs(KILLED, folder=tmp_path), act, 1, 1)


def test_ctrl_c_interrupts_all_and_waits_for_them(tmp_path: Path) -> None:
    def interrupt() -> None:
        while len([*tmp_path.glob("*/*")]) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_side_by_side(jobs(WAITS, WAITS, folder=tmp_path), act, 2, 1)
    thread.join()
    assert len([*tmp_path.glob("*/interrupted")]) == 2
    for path in tmp_path.glob("*/[0-9]*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
