"""Threads that decode and render beside a model: ahead of its steps on cores it leaves idle, or between its steps.

A model on a CPU that has all cores is only slowed down by whoever works at the same time; between two of its steps the
cores are idle. Knows neither files nor images. No thread outlives a pass.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Made = TypeVar("Made")

_MOST = 8
_STRIDES = 4
"""Shares of a batch for each thread, so that none waits long for another one."""


@dataclass(frozen=True)
class Threads:
    """How many threads load, and when."""

    n: int
    ahead: bool
    """While the model computes; else between its steps."""

    def to_text(self) -> str:
        """For people."""
        if not self.n:
            return "loaded between the steps"
        return f"loaded by {self.n} thread{'s' * (self.n != 1)} {'beside' if self.ahead else 'between'} the steps"


def loading_threads(device: str) -> Threads:
    """What is fastest here: the cores that the model's threads leave idle work ahead; where there are none, as many
    threads as the model has work between its steps (`docs/performance.md` has the measurements)."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    computing = torch.get_num_threads() if device == "cpu" else 1
    if usable > computing:
        return Threads(min(_MOST, usable - computing), ahead=True)
    return Threads(min(_MOST, computing) if computing > 1 else 0, ahead=False)


@contextlib.contextmanager
def single_threaded(n_threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads compute on one core each, else each would start a team of its own; gone afterwards."""
    computing, all_started = torch.get_num_threads(), threading.Barrier(n_threads + 1)
    pool = ThreadPoolExecutor(n_threads, "softlabel-load", initializer=_compute_on_one_core)
    try:
        for _ in range(n_threads):
            pool.submit(all_started.wait)
        all_started.wait()
        # What a thread sets for itself is also what threads that start later begin with.
        torch.set_num_threads(computing)
        yield pool
    finally:
        all_started.abort()
        pool.shutdown(wait=True, cancel_futures=True)


def _compute_on_one_core() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread that asks for the first time takes over what was set last by any


def ahead(batches: Iterable[Batch], make: Callable[[Batch], Made], n_threads: int) -> Iterator[Made]:
    """What is made of each batch, in order, one or two batches of each thread ahead of whoever takes them."""
    with single_threaded(n_threads) as pool:
        waiting = deque[Future[Made]]()
        for batch in batches:
            waiting.append(pool.submit(make, batch))
            if len(waiting) > n_threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def shared(pool: ThreadPoolExecutor, n_threads: int, work: Callable[..., None], *arguments: Sequence[object]) -> None:
    """Call `work` with each row of the arguments, by all threads of a pool; raises the first error there was."""
    n_parts = min(n_threads * _STRIDES, len(arguments[0]))

    def part(first: int) -> None:
        for row in zip(*(column[first::n_parts] for column in arguments), strict=True):
            work(*row)

    futures = [pool.submit(part, first) for first in range(n_parts)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]
