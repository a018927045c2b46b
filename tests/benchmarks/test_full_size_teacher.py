"""The benchmark of stage one in small: the real build and the bare tower of the demo's teacher take turns."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_the_build_is_compared_with_the_bare_tower_and_taken_apart(
    load_script: Callable[[str], Any], tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    script = load_script("full_size_teacher")
    words = [tiny_data, "--work", tmp_path, "--shape", "demo", "--images", 2, "--views", 2, "--batch-size", 2]
    monkeypatch.setattr(sys, "argv", ["script", *map(str, words), "--rounds", "2", "--device", "cpu"])
    monkeypatch.setattr(script, "peak_gb", lambda *_: 1.25)  # imports everything anew
    monkeypatch.setattr(script, "tune_allocator", lambda: True)  # of a process that goes on
    script.main()
    said = capsys.readouterr().out
    assert said.count("round ") == 2
    assert all(f"| {part} |" in said for part in ("teacher", "decode and render", "add and seal"))
    assert "aten::addmm" in said
    (line,) = (line.strip("| ").split(" | ") for line in said.splitlines() if line.startswith("| demo |"))
    assert line[:3] + line[6:] == ["demo", "fp32", "bare forward", "1.2"]
    for cell in line[3:6]:
        found = re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", cell)
        assert found, cell
        median, low, high = map(float, found.groups())
        assert 0 < low <= median <= high
