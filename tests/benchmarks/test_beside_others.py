"""Stage two beside other loops, in small: each trains, and what is compared is counted alike."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.train import train


@pytest.fixture
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("beside_others")


@pytest.fixture
def options(script: Any, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    words = [tiny_data, "t.h5", "--student-size", 32, "--teacher", "shufflenet_v2_x0_5", "--epochs", 2, "--threads", 1]
    monkeypatch.setattr(sys, "argv", ["beside_others.py", *map(str, words), "--rounds", "2", "--workers", "0"])
    found = script.parsed()
    assert isinstance(found, argparse.Namespace)
    return found


def test_a_plain_loop_trains(script: Any, options: argparse.Namespace) -> None:
    assert script.plain_loop(options) > 1


def test_torchdistill_trains(script: Any, options: argparse.Namespace) -> None:
    pytest.importorskip("torchdistill")
    assert script.torchdistill_loop(options) > 1


def test_ours_is_the_command_and_counts_all_epochs_but_the_first(
    script: Any, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(words: list[str], threads: int) -> str:
        asked = train.make_context("train", words[words.index("train") + 1 :]).params  # refuses unknown flags
        assert [asked[name] for name in ("student_size_px", "epochs", "batch_size")] == [32, 2, 32]
        run = Path(words[words.index("-o") + 1])
        run.mkdir()
        (run / "metrics.csv").write_text("epoch,images_per_s\n1,5\n2,100\n3,50\n")
        return ""

    monkeypatch.setattr(script, "child", trained)
    assert script.ours(options) == pytest.approx(2 / (1 / 100 + 1 / 50))


def test_a_table_says_how_many_times_faster_ours_is(
    script: Any, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--stage-one-s", "3"])
    monkeypatch.setattr(script, "ours", lambda given: 300.0)
    monkeypatch.setattr(script, "in_child", lambda given, python, kind, workers=0: {"plain": 150.0}.get(kind, 100.0))
    for is_there in (True, False):
        monkeypatch.setattr(script, "has_torchdistill", lambda python, is_there=is_there: is_there)
        script.main()
        said = capsys.readouterr().out
        # 30 train images; 3 seconds are the epochs in which 30 / 150 - 30 / 300 (or 30 / 100 - 30 / 300) are saved.
        rows = [line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("| ")]
        told = {cells[0]: [*cells[1:3], cells[-1]] for cells in rows}
        assert told[script.COURSE] == ["150 (150 to 150)", "2 (2 to 2)", "30.0"]
        others = ["100 (100 to 100)", "3 (3 to 3)", "15.0"]
        assert told.get("torchdistill, 0 workers") == (others if is_there else None)
        assert ("pip install torchdistill" in said) != is_there
