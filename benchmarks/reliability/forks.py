"""Run real command lines in forked processes, and find what outlives them. A hung one is ended, never waited for.

The campaign has imported everything before, so that a command costs less than half a second.
"""

import contextlib
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

from pipeline.cli import run
from reliability.report import Report

HANG_S = 120.0
# A loader's worker looks for its parent every 5 s, once it has started, which takes about as long.
ORPHAN_S = 30.0


def fork(work: Callable[[], object]) -> ForkProcess:
    """Start a function in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def speak_into(printed_fd: int, error_fd: int) -> None:
    """Whatever this process prints goes there from now on, line by line."""
    os.dup2(printed_fd, 1)
    os.dup2(error_fd, 2)
    sys.stdout, sys.stderr = (os.fdopen(stream_fd, "w", buffering=1, closefd=False) for stream_fd in (1, 2))


def start(words: list[str], output_fd: int, prepare: Callable[[], object] = lambda: None) -> ForkProcess:
    """Start one command line that says everything into a file; `prepare` is called in its process before."""

    def command() -> None:
        speak_into(output_fd, output_fd)
        sys.argv = ["softlabel", *words]
        prepare()
        sys.exit(run(words))

    return fork(command)


def finish(words: list[str], prepare: Callable[[], object] = lambda: None) -> tuple[int | None, bytes]:
    """Run one command line to its end: exit code, and all that it said."""
    # A pipe for that: a limit on the bytes of files would hold for a log file, too.
    read_fd, write_fd = os.pipe()
    process = start(words, write_fd, prepare)
    os.close(write_fd)
    watchdog = threading.Timer(HANG_S, process.kill)
    watchdog.daemon = True
    watchdog.start()
    with open(read_fd, "rb") as pipe:
        output = pipe.read()
    process.join()
    watchdog.cancel()
    return process.exitcode, output


def must(words: list[str]) -> None:
    """Run one command line that has no reason to fail."""
    exit_code, output = finish(words)
    if exit_code != 0:
        raise RuntimeError(f"undisturbed, softlabel {shlex.join(words)} failed: {output.decode('utf-8', 'replace')}")


class Orphans:
    """Processes that outlive their command: it leads a process group, which must be empty after a while."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._groups: dict[int, tuple[float, str, str]] = {}

    def watch(self, group: int, row: str, detail: str) -> None:
        """The leader of this group is gone."""
        self._groups[group] = (time.monotonic() + ORPHAN_S, row, detail)

    def check(self, *, wait: bool) -> None:
        """Count and end those whose time is over; with `wait`, until no group is left."""
        while self._groups:
            for group, (deadline_s, row, detail) in list(self._groups.items()):
                left = members(group)
                if left and time.monotonic() < deadline_s:
                    continue
                self._report.add(row, "processes left", len(left), detail)
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                del self._groups[group]
            if not wait:
                return
            time.sleep(0.1)


def members(group: int) -> list[int]:
    """The living processes of a process group; none where there is no /proc."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone in the meantime
            state, _, its_group = file.read_text("utf-8", "replace").rpartition(")")[2].split()[:3]
            if its_group == str(group) and state not in "ZX":
                found.append(int(file.parent.name))
    return found
