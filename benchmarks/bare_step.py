"""A training step with our process settings beside one with torch as it comes, on tensors that are there.

Both learn the same: cross-entropy and T^2 KL, AdamW, a moving average of the weights. Ours is `Learner.step` as
`softlabel train` runs it; the other is a plain loop with torch's defaults: its allocator, threads, layout, optimizer
and `AveragedModel`. Each is a process of its own, as nobody can take back the allocator's settings; --ladder also runs
ours with one setting left out at a time. Run: python benchmarks/bare_step.py --ladder
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from timing import estimate, interleaved, machine_line, markdown, ratio
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.distillation import soft_loss
from pipeline.process import tune_allocator
from pipeline.students.build import build_student
from pipeline.tasks import Tasks
from pipeline.training.config import TrainConfig
from pipeline.training.learner import Learner
from pipeline.training.process_settings import ProcessOptions, settle

CASES = {"x0.5 at 96 px": ("shufflenet_v2_x0_5", 96), "x1.0 at 224 px": ("shufflenet_v2_x1_0", 224)}
OURS, PLAIN = "ours", "torch as it comes"
LADDER = ("without the allocator", "without channels_last", "without the fused optimizer")
N_CLASSES, TEMPERATURE, ALPHA, N_WARM_UP = 7, 4.0, 0.3, 3

Step = Callable[[], object]


def ours(student: str, size_px: int, batch_size: int, without: str = "") -> Step:
    """`Learner.step` in a process that is set up as `softlabel train` does it, but for one setting."""
    if "allocator" not in without:
        tune_allocator()
    config = TrainConfig(student=student, temperature=TEMPERATURE, alpha=ALPHA, batch_size=batch_size)
    model = build_student(student, N_CLASSES, size_px).train()
    settings = settle(model, ProcessOptions(), "cpu", "fp32", config.optimizer, size_px, batch_size)
    layout = torch.contiguous_format if "channels_last" in without else settings.layout
    fused = settings.fused and "fused" not in without
    tasks = Tasks({"class": tuple(map(str, range(N_CLASSES)))})
    learner = Learner(model.to(memory_format=layout), config, "cpu", tasks, fused=fused)
    pixels, teacher, labels = _batch(size_px, batch_size)
    pixels = pixels.contiguous(memory_format=layout)
    return lambda: learner.step(pixels, teacher, labels[:, None], 10, 1000)


def plain(student: str, size_px: int, batch_size: int) -> Step:
    """The same with nothing set."""
    model = build_student(student, N_CLASSES, size_px).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999), use_buffers=True
    )
    pixels, teacher, labels = _batch(size_px, batch_size)

    def step() -> None:
        logits = model(pixels)
        hard, soft = F.cross_entropy(logits, labels), soft_loss(logits, teacher, TEMPERATURE)
        optimizer.zero_grad()
        (ALPHA * hard + (1 - ALPHA) * soft).backward()
        optimizer.step()
        average.update_parameters(model)

    return step


def _batch(size_px: int, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch_size, 3, size_px, size_px, generator=generator)
    teacher = torch.randn(batch_size, N_CLASSES, generator=generator)
    return pixels, teacher, torch.randint(0, N_CLASSES, (batch_size,), generator=generator)


def milliseconds(step: Step, n_steps: int) -> float:
    """Of a step, the mean of so many after the first few."""
    for _ in range(N_WARM_UP):
        step()
    started = time.perf_counter()
    for _ in range(n_steps):
        step()
    return (time.perf_counter() - started) / n_steps * 1e3


def child(contestant: str, student: str, size_px: int, batch_size: int, n_steps: int) -> None:
    """One measurement, printed."""
    made = (
        plain(student, size_px, batch_size)
        if contestant == PLAIN
        else ours(student, size_px, batch_size, contestant.removeprefix(OURS))
    )
    print(milliseconds(made, n_steps))


def measured(contestant: str, student: str, size_px: int, batch_size: int, n_steps: int) -> float:
    """The same in a process of its own."""
    words = [contestant, student, str(size_px), str(batch_size), str(n_steps)]
    done = subprocess.run([sys.executable, __file__, "--child", *words], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="about so long a measurement")
    parser.add_argument("--ladder", action="store_true")
    given = parser.parse_args()
    if given.child:
        contestant, student, *numbers = given.child
        child(contestant, student, *map(int, numbers))
        return
    print(machine_line())
    rows = []
    for case in given.case or CASES:
        student, size_px = CASES[case]
        n_steps = max(2, round(given.seconds / measured(OURS, student, size_px, given.batch_size, 1) * 1e3))
        names = [OURS, PLAIN, *(LADDER if given.ladder else ())]
        found = interleaved(
            {name: partial(measured, name, student, size_px, given.batch_size, n_steps) for name in names},
            given.rounds,
        )
        rows += [(case, name, f"{estimate(values)} ms", ratio(values, found[OURS])) for name, values in found.items()]
    print(markdown(("student", "step", f"batches of {given.batch_size}", "/ ours"), rows))


if __name__ == "__main__":
    main()
