"""What students weigh, whether they export, and how fast one thread trains them: a Markdown table.

Each name in a process of its own, so that a crash of one costs its row alone. Made-up pixels, 7 classes, batches of 16.
Run: python benchmarks/weigh_students.py [--sizes 224 96] timm:resnet10t shufflenet_v2_x1_0 my_model.py:build
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch
from torch.nn import functional

from pipeline.card import StudentCard
from pipeline.errors import PipelineError
from pipeline.inference import memory_format
from pipeline.process import tune_allocator
from pipeline.students.budget import MB, check_budget, n_parameters
from pipeline.students.prepare import prepare_student

CLASSES = tuple("abcdefg")
BATCH, STEPS = 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("students", nargs="+")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 96])
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(row(options.students[0], options.sizes))
        return
    speeds = " | ".join(f"images/s at {size_px} px" for size_px in options.sizes)
    print(f"| student | M parameters | MB | {speeds} |\n|---|---|---|{'---|' * len(options.sizes)}")
    for student in options.students:
        sizes = map(str, options.sizes)
        command = [sys.executable, "-W", "ignore", __file__, "--row", student, "--sizes", *sizes]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout.strip() or f"| {student} | ended with {done.returncode} |", flush=True)


def row(student: str, sizes: list[int]) -> str:
    """A row of the table, or why there is none."""
    tune_allocator()
    torch.set_num_threads(1)
    cells = []
    try:
        for size_px in sizes:
            built = prepare_student(student, CLASSES, size_px)
            card = StudentCard(
                student=built.source.name, tasks={"class": CLASSES}, size_px=size_px, geometry="warp",
                cache_id="", taught=True, teacher="",
            )  # fmt: skip
            artefact_bytes = check_budget(built.module, card, 1e6)
            cells.append(f"{images_per_s(built.module, size_px):.0f}")
            about = f"{n_parameters(built.module) / 1e6:.2f} | {artefact_bytes / MB:.2f}"
    except PipelineError as error:
        return f"| {student} | {error} |"
    return f"| {student} | {about} | {' | '.join(cells)} |"


def images_per_s(model: torch.nn.Module, size_px: int) -> float:
    """The fastest of a few training steps, AdamW, float32."""
    layout = memory_format("cpu", model)
    model.train().to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    pixels = torch.randn(BATCH, 3, size_px, size_px).contiguous(memory_format=layout)
    labels, fastest_s = torch.arange(BATCH) % len(CLASSES), float("inf")
    for _ in range(STEPS):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
        fastest_s = min(fastest_s, time.perf_counter() - started)
    return BATCH / fastest_s


if __name__ == "__main__":
    main()
