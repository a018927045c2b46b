"""The benchmark of epochs over their steps runs to its table, on images of nobody."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path


def test_each_place_of_pixels_has_a_row_for_each_number_of_threads(
    run_script: Callable[..., subprocess.CompletedProcess[str]], tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    words = ("--student-size", 32, "--batch-size", 8, "--threads", 1, "--rounds", 2, "--seconds", 0.01)
    done = run_script("epoch_over_step", tiny_data, tiny_cache, *words, "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| 1 |")]
    assert [row[1] for row in rows] == [
        "floor", "views, there", "views, all-in of 40 epochs", "decoded", "jpeg", "views, building",
    ]  # fmt: skip
    assert all(float(row[2].split(" (")[0]) > 0.3 for row in rows)
    assert "validation" in done.stdout
    assert list(tmp_path.iterdir()) == []
