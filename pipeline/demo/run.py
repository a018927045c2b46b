"""`softlabel demo`: made-up images, a small teacher fitted to their like, then the real commands in order.

The commands run as processes of their own and get no settings but paths, seeds and sizes: what comes out is what the
shipped defaults give. The teacher's fit alone is told to learn from scratch. Run: softlabel demo
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.demo.lesions import CLASSES, write_lesions
from pipeline.errors import OutputExists, PipelineError
from pipeline.inference import load_student
from pipeline.teachers.loading import open_teacher
from pipeline.teachers.prompts import default_prompts
from pipeline.teachers.small import SmallSiglip, new_siglip
from pipeline.teachers.teacher import Teacher

# 428,565,440 float32 parameters.
_MEDSIGLIP_TOWER_MB = 428_565_440 * 4 / 1e6
Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How large the demo is."""

    images_per_class: dict[str, int]
    """Of the data set that the student sees, in each split."""
    teacher_images_per_class: dict[str, int]
    """Other images of the same kind, which only the teacher sees: a teacher knows more than a student's data."""
    teacher_epochs: int
    seeds: int
    student_size_px: int = 64
    views: int = 8


FULL = DemoSize(
    images_per_class={"train": 30, "val": 16, "test": 80}, teacher_images_per_class={"train": 500, "val": 60},
    teacher_epochs=7, seeds=3,
)  # fmt: skip
SMOKE = DemoSize(
    images_per_class={"train": 8, "val": 4, "test": 8}, teacher_images_per_class={"train": 100, "val": 20},
    teacher_epochs=5, seeds=1, student_size_px=48,
)  # fmt: skip


@dataclass
class _Demo:
    """The folder of one demo, its log and its clock."""

    out: Path
    size: DemoSize
    say: Say
    wall_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside; several runs of one stage count together."""
        started = time.perf_counter()
        yield
        self.wall_s[name] = self.wall_s.get(name, 0.0) + time.perf_counter() - started

    def command(self, stage: str, *arguments: str | Path | int, shown: slice = slice(-1, None)) -> None:
        """Run one softlabel command as a user would; its output goes to a log, the `shown` lines to the reader."""
        words = [str(argument) for argument in arguments]
        self.say(f"$ {shlex.join(['softlabel', *words])}")
        # By its file, not by -m: so that nothing in the working folder can take its packages' names.
        launcher = Path(__file__).parents[2] / "softlabel.py"
        with self.stage(stage), (self.out / "demo.log").open("a", encoding="utf-8") as log:
            log.write(f"\n$ softlabel {shlex.join(words)}\n")
            log.flush()
            done = subprocess.run(
                [sys.executable, str(launcher), *words], stdout=subprocess.PIPE, stderr=log, text=True, check=False
            )
            log.write(done.stdout)
        if done.returncode:
            raise PipelineError(f"the command failed with exit code {done.returncode}; see {self.out / 'demo.log'}")
        for line in done.stdout.splitlines()[shown]:
            self.say(f"  {line}")


def run_demo(out: Path, *, smoke: bool, say: Say) -> None:
    """Run the whole demo in the new folder `out`; `say` gets its lines, the table last. Raises OutputExists."""
    if out.exists():
        raise OutputExists(f"{out} exists: delete it to run the demo again, or choose another folder by -o")
    out.mkdir(parents=True)
    demo = _Demo(out, SMOKE if smoke else FULL, say)
    _make_data_and_teacher(demo)
    data, cache = out / "data", out / "t.h5"
    demo.command(
        "cache build", "cache", "build", data, "-o", cache, "--teacher", out / "teacher", "--views", demo.size.views
    )
    demo.command("cache info", "cache", "info", cache, shown=slice(0, 3))
    arms = {"taught": (), "hard": ("--no-teacher",)}
    scores: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for seed in range(demo.size.seeds):
        for arm, flags in arms.items():
            run = out / f"{arm}-{seed}"
            size = ("--student-size", str(demo.size.student_size_px))
            demo.command("train", "train", data, cache, "-o", run, *size, "--seed", seed, *flags)
            evaluation = ("evaluate", run, data, "--split", "test", "--json", run / "test.json")
            demo.command("evaluate", *evaluation, shown=slice(3, 7))
            scores[arm].append(json.loads((run / "test.json").read_text())["splits"]["test"])
    demo.command("export", "export", out / "taught-0", "-o", out / "student_model.pt")
    examples = sorted((data / "test").glob("*/00000.png"))
    demo.command("predict", "predict", out / "student_model.pt", *examples, shown=slice(None))
    say("")
    for line in _table(demo, scores):
        say(line)


def _make_data_and_teacher(demo: _Demo) -> None:
    size, out = demo.size, demo.out
    demo.say(f"made-up skin lesions of {len(CLASSES)} overlapping classes -> {out / 'data'}")
    with demo.stage("make images"):
        write_lesions(out / "data", size.images_per_class)
        write_lesions(out / "teacher-images", size.teacher_images_per_class, size_px=64, seed=1)
    n_images = size.teacher_images_per_class["train"] * len(CLASSES)
    demo.say(f"a small SigLIP with random weights -> {out / 'start'}, to be fitted to {n_images:,} other images")
    texts = [text for texts in default_prompts(sorted(CLASSES)).values() for text in texts]
    new_siglip(SmallSiglip(), texts, out / "start")
    from_scratch = ("--train-text", "--lr", "1e-3", "--epochs", size.teacher_epochs)
    start, teacher = ("--from", out / "start"), ("-o", out / "teacher")
    demo.command("fit teacher", "teacher", "fit", out / "teacher-images", *start, *teacher, *from_scratch)


def _table(demo: _Demo, scores: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    prompts = default_prompts(sorted(CLASSES))
    siglip = open_teacher(str(demo.out / "teacher"), sorted(CLASSES), prompts, device="cpu", precision="fp32")
    teacher_ms, student_ms = _speeds(siglip, demo.out / "student_model.pt")
    teacher_mb = siglip.n_parameters * 4 / 1e6  # float32
    student_mb = (demo.out / "student_model.pt").stat().st_size / 1e6
    teacher = scores["taught"][0]["teacher"]["macro_f1"]
    taught, hard = ([one["student"]["macro_f1"] for one in scores[arm]] for arm in ("taught", "hard"))
    n_test = scores["taught"][0]["student"]["n_samples"]
    yield f"{'':34}test macro F1     size     ms/image"
    yield f"{'teacher (image tower)':34}{teacher:.3f}          {teacher_mb:5.1f} MB  {teacher_ms:5.2f}"
    yield f"{'student, hard and soft labels':34}{_spread(taught)}  {student_mb:5.1f} MB  {student_ms:5.2f}"
    yield f"{'baseline, hard labels, same views':34}{_spread(hard)}  {student_mb:5.1f} MB  {student_ms:5.2f}"
    yield (
        f"retention {statistics.mean(taught) / teacher:.0%} of the teacher's macro F1, "
        f"compression {teacher_mb / student_mb:.1f}x, speed-up {teacher_ms / student_ms:.1f}x "
        f"({n_test} test images, {len(taught)} seeds; +- is the standard deviation over seeds)"
    )
    yield (
        f"With MedSigLIP-448 as teacher ({_MEDSIGLIP_TOWER_MB:,.0f} MB image tower) "
        f"the same student is {_MEDSIGLIP_TOWER_MB / student_mb:.0f} times smaller."
    )
    if demo.size is SMOKE:
        yield "Smoke: too few images and steps for the scores to mean anything; without --smoke they do."
    yield "seconds: " + ", ".join(f"{name} {wall_s:.0f}" for name, wall_s in demo.wall_s.items())


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} +- {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean}         "


def _speeds(teacher: Teacher, model: Path, batch_size: int = 16, rounds: int = 7) -> tuple[float, float]:
    """Milliseconds an image, teacher and exported student on the CPU in float32, medians of interleaved rounds."""
    student = load_student(model, "cpu")
    sizes = (teacher.size_px, student.card.size_px)
    noise = [torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8) for size in sizes]
    ms: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 2):
        for forward, pixels, times in zip((teacher.embed, student.logits), noise, ms, strict=True):
            started = time.perf_counter()
            forward(pixels)
            times.append((time.perf_counter() - started) * 1e3 / batch_size)
    # The first two rounds warm up: TorchScript specialises its graph in them.
    return statistics.median(ms[0][2:]), statistics.median(ms[1][2:])
