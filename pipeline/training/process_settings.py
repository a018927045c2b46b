"""How the process trains: threads, memory layout, optimizer kernels. Changes speed, and of results last digits at most.

Chosen once before the first step, said in one line. Never changes what is learned from. B batch, S pixels.
Run: softlabel train DATA t.h5 -o RUN --threads 2
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.errors import SettingError
from pipeline.inference import memory_format
from pipeline.process import allocator_is_tuned
from pipeline.training.optimisation import is_fused
from pipeline.training.precision import autocast

_STEPS = 2
_FEWEST, _PIXELS = 8, 64 * 96**2
"""Of a timed step: fewer images, or smaller ones, split so badly that two threads seem no faster than one."""
_WORTH = 1.1
"""So much faster must more threads be: a gain below is noise, and other processes have a use for the cores."""


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """What a user says of it."""

    tuned: bool = True
    """False leaves torch as it comes: its number of threads, its layout, its default optimizer loop."""
    threads: int | None = None
    """Of the model on a CPU; None times a few numbers, and with `tuned` off takes torch's own."""

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise SettingError(f"threads must be in 1..1024, got {self.threads}")


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """What was chosen."""

    device: str
    precision: str
    threads: int
    n_timed: int
    """Images of a step that was timed."""
    timed_ms: Mapping[int, float]
    """Number of threads -> milliseconds of such a step, where that was timed."""
    layout: torch.memory_format
    fused: bool
    allocator: bool
    """Whether freed memory is kept."""

    def line(self) -> str:
        """All of it, and what switches it off."""
        others = ", ".join(f"{ms:.0f} ms with {n}" for n, ms in self.timed_ms.items() if n != self.threads)
        timed = f" ({self.timed_ms[self.threads]:.0f} ms for {self.n_timed} images, {others})" if others else ""
        on = [
            name for name, is_on in {
                "channels_last": self.layout == torch.channels_last, "fused optimizer": self.fused,
                "allocator keeps memory": self.allocator,
            }.items() if is_on
        ]  # fmt: skip
        return (
            f"{self.device}, {self.precision}, {self.threads} thread{'s' * (self.threads != 1)}{timed}; "
            f"{', '.join(on) or 'torch as it comes'}"
        )


def settle(
    model: nn.Module, options: ProcessOptions, device: str, precision: str, optimizer: str, size_px: int,
    batch_size: int,
) -> ProcessSettings:  # fmt: skip
    """Choose, and set the number of threads of this process; the model and all random numbers stay as they are."""
    layout = memory_format(device, model) if options.tuned else torch.contiguous_format
    n_timed, timed_ms = max(_FEWEST, min(batch_size, _PIXELS // size_px**2)), dict[int, float]()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    elif options.tuned and device == "cpu" and len(candidates := _candidates(torch.get_num_threads())) > 1:
        timed_ms = _timed(model, layout, precision, (n_timed, size_px), candidates)
        torch.set_num_threads(chosen(timed_ms))
    return ProcessSettings(
        device=device, precision=precision, threads=torch.get_num_threads(), n_timed=n_timed,
        timed_ms=timed_ms, layout=layout,
        fused=options.tuned and is_fused(optimizer, device, precision), allocator=allocator_is_tuned(),
    )  # fmt: skip


def chosen(timed_ms: Mapping[int, float]) -> int:
    """The fewest threads that are about as fast as the fastest."""
    fastest = min(timed_ms.values())
    return min(n for n, ms in timed_ms.items() if ms <= fastest * _WORTH)


def _candidates(n_threads: int) -> list[int]:
    """Torch's own number, which respects OMP_NUM_THREADS and the cores that the process may use; half of it; one."""
    return sorted({1, max(1, n_threads // 2), n_threads})


def _timed(
    model: nn.Module, layout: torch.memory_format, precision: str, shape: tuple[int, int], candidates: Sequence[int]
) -> dict[int, float]:
    """Milliseconds of a step of a copy, the best of a few: other work makes it slower, nothing makes it faster."""
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    n_images, size_px = shape
    pixels = torch.randn(n_images, 3, size_px, size_px, generator=generator).to(memory_format=layout)
    try:
        with torch.random.fork_rng(devices=[]):  # dropout draws
            trial: Any = copy.deepcopy(model)
            trial = trial.to(memory_format=layout).train()
            _step_ms(trial, pixels, precision, candidates[-1])  # the first one makes the heap grow
            return {n: min(_step_ms(trial, pixels, precision, n) for _ in range(_STEPS)) for n in candidates}
    finally:
        torch.set_num_threads(before)


def _step_ms(model: nn.Module, pixels: torch.Tensor, precision: str, n_threads: int) -> float:
    torch.set_num_threads(n_threads)
    started = time.perf_counter()
    with autocast(precision, "cpu"):
        outputs = model(pixels)
    outputs.float().square().mean().backward()
    return (time.perf_counter() - started) * 1e3
