"""What an epoch of `softlabel train` costs over its bare training steps, for each place that pixels may come from.

The floor: Learner.step with the same settings, batches and number of threads on tensors that are resident: normalised,
with their labels and soft targets gathered. Against it the training part of real epochs of the real Trainer; validation
and checkpoint are timed apart. All contestants of a number of threads take turns in one process of its own, in shuffled
order; an epoch is repeated until it takes --seconds. `all-in` is computed from what was measured: one epoch that
renders all views and writes them, and 39 with the views there, over 40 floors.
Run: python benchmarks/epoch_over_step.py DATA t.h5 --student shufflenet_v2_x0_5 --student-size 96
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPOCHS = 40
CHOICES = ("views", "decoded", "jpeg")
BUILDING = "views, building"


class Contest:
    """One process: trainers of each choice, the floor, and what each took."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        from cache import open_caches
        from data.options import ScanOptions
        from pipeline.bad_images import scan_like
        from pipeline.training.config import TrainConfig

        self.config = TrainConfig(
            student=given.student, student_size_px=given.student_size, batch_size=given.batch_size, epochs=EPOCHS
        )
        self.seconds, self.folder, self.workers = given.seconds, folder, given.workers
        self.threads = given.threads[0]
        self.reader = open_caches(given.caches, memory_map=False)
        self.images = scan_like(self.reader, given.data, ScanOptions())
        self.trainers = {choice: self.trainer(choice) for choice in (*CHOICES, "floor", BUILDING)}
        self.cpu_s: dict[str, list[float]] = {}
        self.validation_s: list[float] = []
        self.n_built = 0

    def trainer(self, choice: str) -> Any:
        """A run that has begun, of random weights."""
        from pipeline.runs import RunFolder
        from pipeline.training.pixels import PixelOptions
        from pipeline.training.process_settings import ProcessOptions
        from pipeline.training.trainer import Trainer

        of_file = choice if choice in CHOICES else "jpeg"
        made = Trainer(
            RunFolder(self.folder / choice), self.reader, self.images, self.config, "cpu", self.workers, False,
            resumed=False, process=ProcessOptions(threads=self.threads),
            pixels=PixelOptions(choice=of_file, limit_gb=1000, folder=self.folder / "pixels"),
        )  # fmt: skip
        made._pixels.source.begin()
        made._check_interrupt = lambda: None
        return made

    def floor(self) -> Callable[[int], float]:
        """The steps of an epoch on resident tensors, seconds."""
        import torch

        from pipeline.inference import normalise

        trainer = self.trainers["floor"]
        plan, lessons = trainer._lessons.epoch(0), trainer._lessons
        resident = []
        for pixels, draw_B in trainer._load(plan.batches):
            said = lessons.told(plan, draw_B.numpy())
            labels_BT = torch.from_numpy(lessons.labels_NT[plan.sample_M[draw_B.numpy()]])
            resident.append(
                (normalise(pixels, trainer._card, "cpu", trainer._process.layout), torch.from_numpy(said), labels_BT)
            )

        def steps(epoch: int) -> float:
            trainer._learner.model.train()
            started = time.perf_counter()
            for number, batch in enumerate(resident):
                trainer._learner.step(*batch, epoch * len(resident) + number, EPOCHS * len(resident))
            return time.perf_counter() - started

        return steps

    def epoch(self, choice: str) -> Callable[[int], float]:
        """The training part of an epoch, seconds."""
        trainer = self.trainers[choice]

        def run(epoch: int) -> float:
            if choice == BUILDING:
                self.forget(trainer)
            row = trainer._one_epoch(epoch)
            trained_s = len(trainer._lessons.targets.samples) / row["images_per_s"]
            self.validation_s.append(row["wall_s"] - trained_s)
            return float(trained_s)

        return run

    def forget(self, trainer: Any) -> None:
        """Give a trainer a new, empty file of views."""
        from data.loaders import StudentLoader
        from pipeline.training.pixels import PixelOptions, choose_pixels

        self.n_built += 1
        where = PixelOptions(choice="views", limit_gb=1000, folder=self.folder / f"pixels {self.n_built}")
        groups = {"train": trainer._lessons.targets, "val": trainer._validate.targets}
        source = choose_pixels(where, groups, self.config).source
        source.begin()
        trainer._load = StudentLoader(source.size_px, source.geometry, self.workers or 0, source=source)

    def measured(self, name: str, run: Callable[[int], float], n_times: int) -> Callable[[], float]:
        """Mean seconds of some epochs; CPU seconds go beside."""
        done = 0

        def measure() -> float:
            nonlocal done
            total_s, cpu_started = 0.0, time.process_time()
            for _ in range(n_times):
                total_s += run(done % EPOCHS)
                done += 1
            self.cpu_s.setdefault(name, []).append((time.process_time() - cpu_started) / n_times)
            return total_s / n_times

        return measure

    def run(self, rounds: int) -> dict[str, Any]:
        """Wall seconds and CPU seconds of each contestant in each round, and of what is around the training."""
        from timing import interleaved

        runs = {"floor": self.floor()} | {name: self.epoch(name) for name in (*CHOICES, BUILDING)}
        for name in ("views", "decoded"):  # fill their files, each view once
            for number in range(int(self.trainers[name]._lessons.mean_views) if name == "views" else 1):
                runs[name](number)
        runs["jpeg"](0)
        n_times = max(1, round(self.seconds / max(1e-3, runs["floor"](0), runs["floor"](0))))
        contestants = {name: self.measured(name, run, 1 if name == BUILDING else n_times) for name, run in runs.items()}
        self.validation_s.clear()
        wall_s = interleaved(contestants, rounds, tell=lambda line: print(line, file=sys.stderr))
        started = time.perf_counter()
        self.trainers["views"]._save()
        return {
            "wall_s": wall_s, "cpu_s": self.cpu_s, "validation_s": min(self.validation_s),
            "checkpoint_s": time.perf_counter() - started,
            "n_images": len(self.trainers["views"]._lessons.targets.samples),
        }  # fmt: skip


def child(given: argparse.Namespace) -> None:
    """The contest of one number of threads, as JSON on standard output."""
    from pipeline.process import tune_allocator

    tune_allocator()
    import torch

    torch.set_num_threads(given.threads[0])
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        print(json.dumps(Contest(given, Path(folder)).run(given.rounds)))


def rows_of(found: dict[str, Any], threads: int) -> list[list[object]]:
    """The table's rows of one number of threads."""
    from timing import estimate, ratio

    wall_s, cpu_s = found["wall_s"], found["cpu_s"]
    floor = wall_s["floor"]
    all_in = [(one + (EPOCHS - 1) * rest) / EPOCHS for one, rest in zip(wall_s[BUILDING], wall_s["views"], strict=True)]
    per_image_ms = 1e3 / found["n_images"]
    rows: list[list[object]] = [[threads, "floor", "1", "", f"{estimate(floor).median * per_image_ms:.3g}"]]
    contestants = {"views, there": wall_s["views"], f"views, all-in of {EPOCHS} epochs": all_in}
    contestants |= {"decoded": wall_s["decoded"], "jpeg": wall_s["jpeg"], BUILDING: wall_s[BUILDING]}
    for name, values in contestants.items():
        cpu = cpu_s.get(name.removesuffix(", there"), cpu_s["views"])
        shown_cpu = "" if name.startswith("views, all-in") else f"{ratio(cpu, cpu_s['floor']).median:.3g}"
        rows.append([threads, name, ratio(values, floor), shown_cpu, f"{estimate(values).median * per_image_ms:.3g}"])
    return rows


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("caches", nargs="+")
    parser.add_argument("--student", default="shufflenet_v2_x0_5")
    parser.add_argument("--student-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--workers", type=int, help="loader processes, as of softlabel train")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a floor, at least")
    parser.add_argument(
        "--folder", help="where runs and files of pixels are put for the while [that for temporary ones]"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main() -> None:
    given = parse()
    if given.child:
        return child(given)
    from timing import machine_line, markdown

    rows: list[list[object]] = []
    around = []
    for threads in given.threads:
        words = [word for word in sys.argv[1:] if word != "--child"]
        if "--threads" in words:
            at = words.index("--threads")
            del words[at : at + 1 + len(given.threads)]
        command = [sys.executable, __file__, *words, "--child", "--threads", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
        found = json.loads(done.stdout.splitlines()[-1])
        rows += rows_of(found, threads)
        around.append(
            f"{threads} threads: validation {found['validation_s']:.2f} s, checkpoint {found['checkpoint_s']:.3f} s"
        )
    print(f"{given.student} at {given.student_size} px, {found['n_images']:,} images, {given.rounds} rounds")
    print(machine_line())
    print(markdown(["threads", "pixels", "epoch / floor (95 %)", "CPU, with validation / floor", "ms an image"], rows))
    print("\n".join(around))


if __name__ == "__main__":
    main()
