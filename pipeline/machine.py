"""What is to be known of the machine that something was timed on: its processor, its cores, and who else uses them."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine at one moment."""

    cpu: str
    """What the processor is called."""
    n_cores: int
    """Logical ones, of the whole machine."""
    n_usable: int
    """Of these, how many this process may use; a container or `taskset` may keep some from it."""
    load: float | None
    """How many processes ran or waited on average over the last minute; None where nobody counts (Windows)."""

    @property
    def is_busy(self) -> bool:
        """Whether others take so much that timings come out too long: more than half of the cores."""
        return self.load is not None and self.load > self.n_cores / 2


def this_machine() -> Machine:
    """The machine as it is now."""
    n_cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else n_cores
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Machine(cpu=_cpu_name(), n_cores=n_cores, n_usable=usable, load=load)


def _cpu_name() -> str:
    """Its maker's name where the system knows it, else its architecture."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "darwin":
            words = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
        if sys.platform == "linux":
            with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
                for line in file:
                    if line.startswith("model name"):
                        return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
