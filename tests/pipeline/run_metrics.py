"""The table of a training's epochs, for tests that compare two runs."""

from __future__ import annotations

import csv
from pathlib import Path

_TIMES = {"images_per_s", "wall_s", "cpu_s"}


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without what no two runs share."""
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in _TIMES} for row in csv.DictReader(file)]
