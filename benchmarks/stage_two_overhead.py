"""What soft targets cost: CPU seconds per image and peak memory of `softlabel train` with them, beside --no-teacher.

The same loop on the same views, in turns, each run a process of its own; the first epoch, which warms up, is left out.
Run: python benchmarks/stage_two_overhead.py DATA t.h5
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

ARMS = {"with the cache's logits": "--teacher", "without": "--no-teacher"}


def run(words: list[str], out: Path) -> tuple[list[float], float]:
    """(CPU seconds of each epoch, peak resident megabytes) of one training."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "softlabel", "train", *words, "-o", str(out), "--anyway", "--workers", "0"]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed: run it by itself")
    with (out / "metrics.csv").open() as file:
        return [float(row["cpu_s"]) for row in csv.DictReader(file)], usage.ru_maxrss / 1000


def ratio_of_means(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(one.mean(axis=axis) / other.mean(axis=axis))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("cache")
    parser.add_argument("--student", default="shufflenet_v2_x0_5")
    parser.add_argument("--student-size", default="96")
    parser.add_argument("--views", default="8")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    words = [given.data, given.cache, "--student", given.student, "--student-size", given.student_size]
    words += ["--views", given.views, "--epochs", str(given.epochs), "--device", "cpu"]
    cpu_s: dict[str, list[float]] = {arm: [] for arm in ARMS}
    peak_mb: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            for arm in list(ARMS) if number % 2 else list(reversed(ARMS)):
                epochs_s, megabytes = run([*words, ARMS[arm]], Path(folder, f"{number}{ARMS[arm]}"))
                cpu_s[arm] += epochs_s[1:]
                peak_mb[arm].append(megabytes)
                print(f"round {number + 1}, {arm}: {np.mean(epochs_s[1:]):.2f} CPU-s an epoch, {megabytes:,.0f} MB")
    for what, found in (("CPU seconds", cpu_s), ("peak memory", peak_mb)):
        pairs = tuple(np.array(found[arm]) for arm in ARMS)
        interval = bootstrap(pairs, ratio_of_means, paired=True, vectorized=True, rng=0).confidence_interval
        ratio = ratio_of_means(*pairs)
        print(
            f"{what}: ratio {ratio:.3f}, 95 % interval {interval.low:.3f} to {interval.high:.3f}, {len(pairs[0])} pairs"
        )


if __name__ == "__main__":
    main()
