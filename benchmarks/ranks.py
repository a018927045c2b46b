"""Are two ranks of one thread faster than one process of two threads, building and training?

Whole commands in turns, in shuffled order; speed is what they say themselves: views/s of a build, images/s of the
epochs after the first. Start-up and the meeting of the ranks are outside of it. On a GPU machine: --device cuda, whose
ranks have a GPU each. Run: python benchmarks/ranks.py WORK_FOLDER, or with --smoke in a minute.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from timing import interleaved, machine_line, markdown, ratio

from pipeline.demo.lesions import write_lesions
from reliability.tiny import write_teacher

_SOFTLABEL = Path(__file__).resolve().parents[1] / "softlabel.py"


class Bench:
    """Images, a teacher that takes its time, its cache; and commands on them."""

    def __init__(self, work: Path, arguments: argparse.Namespace) -> None:
        self.work, self.arguments = work, arguments
        self.data, self.teacher, self.cache = work / "data", work / "teacher", work / "t.h5"
        if not self.cache.exists():
            images = {"train": arguments.images, "val": 4, "test": 3}
            write_lesions(self.data, images, size_px=arguments.size)
            write_teacher(self.teacher, self.data, width=arguments.width)
            self.run(1, "cache", "build", self.data, "-o", self.cache, *self.build_words)

    @property
    def build_words(self) -> list[object]:
        """Options of a build."""
        return ["--teacher", self.teacher, "--views", 4, "--precision", "fp32", "--workers", 0, *self.device]

    @property
    def device(self) -> list[object]:
        """The device of all commands."""
        return ["--device", self.arguments.device]

    def run(self, n_ranks: int, *words: object) -> str:
        """One command in so many ranks, all together on `--threads` threads; what it printed."""
        launch: list[object] = [sys.executable]
        if n_ranks > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", n_ranks]
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, self.arguments.threads // n_ranks))}
        command = [str(word) for word in (*launch, _SOFTLABEL, *words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        return done.stdout

    def build(self, n_ranks: int) -> float:
        """Views/s."""
        out = self.work / "out.h5"
        out.unlink(missing_ok=True)
        said = self.run(n_ranks, "cache", "build", self.data, "-o", out, *self.build_words)
        found = re.search(r"([0-9.]+) views/s", said)
        assert found is not None, said
        return float(found[1])

    def train(self, n_ranks: int) -> float:
        """Images/s, median of the epochs after the first."""
        run, options = self.work / "run", self.arguments
        shutil.rmtree(run, ignore_errors=True)
        self.run(
            n_ranks, "train", self.data, self.cache, "-o", run, "--student", options.student, "--student-size",
            options.size, "--epochs", options.epochs, "--batch-size", options.batch_size, "--threads",
            max(1, options.threads // n_ranks), "--workers", 0, "--no-report", "--anyway", *self.device,
        )  # fmt: skip
        with (run / "metrics.csv").open() as file:
            return statistics.median(float(row["images_per_s"]) for row in list(csv.DictReader(file))[1:])


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a folder for images, teacher, cache and runs")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of all ranks together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=100, help="train images of each of 5 classes")
    parser.add_argument("--size", type=int, default=96, help="of images and student, pixels")
    parser.add_argument("--width", type=int, default=512, help="of the teacher")
    parser.add_argument("--student", default="shufflenet_v2_x0_5")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="one round of the smallest that runs")
    found = parser.parse_args(words)
    if found.smoke:
        found.rounds, found.images, found.size, found.width, found.epochs, found.batch_size = 1, 6, 48, 32, 2, 8
    return found


def main() -> None:
    """Print the table."""
    arguments = parse(sys.argv[1:])
    arguments.work.mkdir(parents=True, exist_ok=True)
    bench, rows = Bench(arguments.work, arguments), []
    print(machine_line(), flush=True)
    one = f"1 process, {arguments.threads} threads"
    several = f"{arguments.ranks} ranks, {max(1, arguments.threads // arguments.ranks)} threads each"
    for what, measure in {"build, views/s": bench.build, "train, images/s": bench.train}.items():
        found = interleaved(
            {one: lambda m=measure: m(1), several: lambda m=measure: m(arguments.ranks)}, arguments.rounds
        )
        medians = [f"{statistics.median(found[name]):.1f}" for name in (one, several)]
        rows.append([what, *medians, str(ratio(found[several], found[one]))])
    print(markdown(["", one, several, "ranks / process"], rows))


if __name__ == "__main__":
    main()
