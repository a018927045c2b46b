"""From Enter to the end of a student's first step: `softlabel train` as a process of its own, and where its time goes.

WORK is kept for another run: made-up images (10,000, 224 px) and a cache of them by a tiny teacher, 8 views. Each round
starts the real command (x0.5 at 96 px) and ends it after its first step; the page cache is warm and the images were
hashed before. Further options go to `softlabel train`. Run: python benchmarks/start_up.py WORK
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import Estimate, estimate, machine_line, markdown

from pipeline.demo.lesions import write_lesions
from reliability.tiny import write_teacher

# Run by a new process: what it has done when, in seconds after Enter, as JSON.
TIMELINE = """
import json, os, sys, time
began, marks = float(sys.argv[1]), []
def mark(what):
    marks.append((what, time.time() - began))
mark("Python")
from pipeline.start import without_garbage_collection
with without_garbage_collection():
    import torch; mark("import torch")
    import torchvision.transforms.v2; mark("import torchvision")
    import pipeline.train as command, pipeline.training.trainer as trainer; mark("import our own")
def timed(owner, name, what):
    inner = getattr(owner, name)
    def outer(*arguments, **options):
        result = inner(*arguments, **options)
        mark(what)
        return result
    setattr(owner, name, outer)
timed(command, "scan_like", "find and hash images")
timed(trainer, "join", "join with the cache, verify it")
timed(trainer.Trainer, "__init__", "student, witness, threads")
timed(trainer.Trainer, "announce", "what the teacher is worth")
from pipeline.training.learner import Learner
step = Learner.step
def first(*arguments, **options):
    mark("first batch")
    step(*arguments, **options)
    mark("first step")
    print(json.dumps(marks), flush=True)
    os._exit(0)
Learner.step = first
from pipeline.cli import run
sys.exit(run(sys.argv[2:]))
"""


def prepare(work: Path, n_images: int) -> tuple[Path, Path]:
    """Images and their cache, made where they are not there."""
    data, cache = work / "images", work / "t.h5"
    if not cache.exists():
        per_class = n_images // 5
        counts = {"train": per_class * 8 // 10, "val": per_class // 10, "test": per_class // 10}
        write_lesions(data, counts, size_px=224)
        write_teacher(work / "teacher", data)
        words = ["cache", "build", data, "-o", cache, "--teacher", work / "teacher"]
        subprocess.run([sys.executable, "-m", "softlabel", *map(str, words)], check=True)
    return data, cache


def first_step(data: Path, cache: Path, options: list[str]) -> dict[str, float]:
    """What was done -> seconds after Enter."""
    with tempfile.TemporaryDirectory() as folder:
        train = ["train", data, cache, "-o", Path(folder, "run"), "--student", "shufflenet_v2_x0_5"]
        words = [*map(str, train), "--student-size", "96", "--anyway", *options]
        command = [sys.executable, "-c", TIMELINE, str(time.time()), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"softlabel {' '.join(words)}\n{done.stdout}{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    given, options = parser.parse_known_args()
    work: Path = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(work / "home")
    data, cache = prepare(work, given.images)
    print(machine_line())
    rounds = [first_step(data, cache, options) for _ in range(given.rounds + 1)][1:]  # the first one warms up
    rows: list[tuple[str, Estimate, Estimate]] = []
    before = dict.fromkeys(range(len(rounds)), 0.0)
    for what in rounds[0]:
        spent = [one[what] - before[number] for number, one in enumerate(rounds)]
        before = {number: one[what] for number, one in enumerate(rounds)}
        rows.append((what, estimate(spent), estimate(list(before.values()))))
    print(markdown((f"{given.images:,} images", "seconds", "since Enter"), rows))


if __name__ == "__main__":
    main()
