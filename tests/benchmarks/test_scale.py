"""The benchmark of scale in small: every operation has its line at every size, and nothing stays behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache.errors import CacheMismatch

OPERATIONS = [
    "write the shares", "merge", "open", "open + join", "open + join, shuffled", "open + join + verify", "lessons",
    "rows of an epoch", "gather 256 rows",
]  # fmt: skip


def test_each_operation_has_its_line(run_script: Callable[..., Any], tmp_path: Path) -> None:
    done = run_script("scale", tmp_path, "--samples", 1000, "--rounds", 2, "--operations", *OPERATIONS[:3])
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [cells[:2] for cells in lines[1:]] == [[name, "1,000"] for name in OPERATIONS[:3]]
    for name, _, seconds, each_us, peak_mb, before_mb in lines[1:]:
        assert re.fullmatch(r"\d+\.\d{3} s", seconds)
        assert re.fullmatch(r"\d+\.\d{3} \(\d+\.\d{3}\)", each_us)
        assert 10 < float(before_mb.replace(",", "")) <= float(peak_mb.replace(",", "")) < 2000, name


def test_sizes_of_one_operation_stand_side_by_side(load_script: Callable[[str], Any]) -> None:
    found = [["open", "1,000"], ["merge", "1,000"], ["merge", "40"], ["open", "40"]]
    assert sorted(found, key=load_script("scale").order) == [found[2], found[1], found[3], found[0]]


def test_all_operations_work_on_the_same_files(load_script: Callable[[str], Any], tmp_path: Path) -> None:
    scale = load_script("scale")
    assert list(scale.OPERATIONS) == [*OPERATIONS, "scan", "scan again"]
    for operation, measure in scale.OPERATIONS.items():
        found = measure(tmp_path, 60, 3)
        assert found["seconds"] >= 0, operation
        if operation == "merge":
            with pytest.raises(CacheMismatch, match="exists already"):
                measure(tmp_path, 60, 3)
