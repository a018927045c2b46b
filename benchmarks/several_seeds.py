"""Do two students at once learn more images a second than one after the other on all cores?

Starts `softlabel train DATA t.h5 --seeds 2` with --at-once 1 and with --at-once 2, in turns, on views that an earlier
run has stored, and compares the images/s of all runs together: those of metrics.csv, where the first epoch, which warms
up, is left out. Run: python benchmarks/several_seeds.py DATA t.h5
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from timing import estimate, interleaved, machine_line, markdown, ratio

CASES = {"x0.5 at 96 px": ("shufflenet_v2_x0_5", 96), "x1.0 at 224 px": ("shufflenet_v2_x1_0", 224)}
N_SEEDS = 2


def images_per_s(data: Path, cache: Path, case: str, epochs: int, at_once: int) -> float:
    """Of all runs together while they train."""
    student, size_px = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "runs")
        words = ["train", data, cache, "-o", out, "--student", student, "--student-size", size_px, "--epochs", epochs]
        words += ["--batch-size", 64, "--seeds", N_SEEDS, "--at-once", at_once, "--anyway", "--no-report"]
        words += ["--pixels", "views"]
        command = [sys.executable, "-m", "softlabel", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        speeds = []
        for table in out.glob("seed-*/metrics.csv"):
            with table.open() as file:
                speeds += [float(row["images_per_s"]) for row in csv.DictReader(file)][1:]
    return statistics.median(speeds) * at_once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rows = []
    for case in given.case or CASES:
        run = partial(images_per_s, given.data, given.cache, case, given.epochs)
        run(1)  # stores the views
        print(machine_line())
        found = interleaved({"one after the other": partial(run, 1), "two at once": partial(run, 2)}, given.rounds)
        gain = ratio(found["two at once"], found["one after the other"])
        rows.append((case, *(estimate(values) for values in found.values()), gain))
    print(markdown(("student", "one after the other, images/s", "two at once", "gain"), rows))


if __name__ == "__main__":
    main()
