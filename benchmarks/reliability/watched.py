"""Do numbered pieces of work in a process that may crash, hang or take all memory, and say which piece did it.

Run: benchmarks/hostile_files.py
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from reliability import forks


@dataclass(frozen=True)
class Done:
    """One piece of work: what came of it, how long it took, and the memory that the process had had at most by then."""

    number: int
    outcome: Any
    """None where the process crashed or was ended."""
    seconds: float
    peak_bytes: int
    end: str = ""
    """How the process ended, if it did."""


def watched(work: Callable[[int], Any], numbers: range, limit_s: float) -> Iterator[Done]:
    """All pieces in order; after a crash, or more than `limit_s` seconds, a new process goes on with the next one."""
    while numbers:
        ours, theirs = Pipe(duplex=False)
        process = forks.fork(lambda numbers=numbers, theirs=theirs: _work(work, numbers, theirs))
        theirs.close()
        peak_bytes, begun = 0, time.perf_counter()
        for number in numbers:
            numbers = numbers[1:]
            try:
                if not wait([ours], limit_s):
                    raise TimeoutError
                outcome, seconds, peak_bytes = ours.recv()
            except (EOFError, TimeoutError) as error:
                process.kill()
                process.join()
                end = "hang" if isinstance(error, TimeoutError) else f"crash ({process.exitcode})"
                yield Done(number, None, time.perf_counter() - begun, peak_bytes, end)
                break
            begun = time.perf_counter()
            yield Done(number, outcome, seconds, peak_bytes)
        else:
            process.join()
        ours.close()


def _work(work: Callable[[int], Any], numbers: range, pipe: Connection) -> None:
    for number in numbers:
        begun = time.perf_counter()
        outcome = work(number)
        pipe.send((outcome, time.perf_counter() - begun, peak_bytes()))
    os._exit(0)


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
