"""Several runs at the same time, each in a process of its own with its share of the cores.

Two students on a thread each learn 1.3 to 1.4 times as much per second as one after the other on two threads: a step
does not split well. Each run is the one that `train --threads` makes alone; stored views are shared through the page
cache. Never decides what is run. Run: softlabel train DATA t.h5 -o RUNS --seeds 5
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast

import torch

from data.loaders import end_with_parent, starting_workers
from pipeline.errors import RunError
from pipeline.process import allocator_is_tuned, tune_allocator
from pipeline.training.config import TrainConfig

_PACKAGES = ("cache", "data", "pipeline")


@dataclass(frozen=True)
class Job:
    """One run."""

    name: str
    """How its lines begin, such as `seed 3`."""
    folder: Path
    config: TrainConfig
    resume: bool


Run = Callable[[Path, TrainConfig, bool], object]
"""`run(folder, config, resume)`; goes to another process, so it must be picklable."""


def is_possible() -> bool:
    """Whether this system has process groups, which keep a Ctrl-C from reaching a run twice; Windows has none."""
    return hasattr(os, "setpgrp")


def run_side_by_side(jobs: Sequence[Job], run: Run, at_once: int, threads: int) -> None:
    """Run all of them, so many at once, each on `threads` threads.

    Where one fails those that are under way are finished, no further one is begun, and its error is raised. Ctrl-C ends
    all after their batch; what they have saved stays.
    """
    waiting, running, errors = deque(jobs), dict[Connection, _Child](), list[Exception]()
    try:
        while running or (waiting and not errors):
            while waiting and not errors and len(running) < at_once:
                child = _start(waiting.popleft(), run, threads)
                running[child.said] = child
            for said in wait(list(running)):
                child = running[cast("Connection", said)]
                if child.has_ended():
                    del running[child.said]
                    errors += child.errors()
    finally:
        _stop(list(running.values()))
    if errors:
        raise errors[0]


@dataclass
class _Child:
    name: str
    process: SpawnProcess
    said: Connection
    """Log records, and at last what ended it, if anything did."""
    error: BaseException | None = None

    def has_ended(self) -> bool:
        """Take up one thing that it said; True where it says no more."""
        try:
            said = self.said.recv()
        except EOFError:
            self.process.join()
            return True
        if isinstance(said, logging.LogRecord):
            logging.getLogger(said.name).handle(said)
        else:
            self.error = said
        return False

    def errors(self) -> list[Exception]:
        """What it failed by, none or one; KeyboardInterrupt where it was interrupted."""
        if isinstance(self.error, Exception):
            return [self.error]
        if self.error is not None:
            raise self.error
        code = self.process.exitcode
        ended = f"{self.name} was ended from outside (exit code {code}): go on with --resume"
        return [RunError(ended)] if code else []


def _start(job: Job, run: Run, threads: int) -> _Child:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(job, run, threads, allocator_is_tuned(), sending))
    with starting_workers():
        process.start()
    sending.close()  # the child's copy alone is left, which ends with it
    return _Child(job.name, process, receiving)


def _stop(children: Sequence[_Child]) -> None:
    """Interrupt those that are still there, and wait; a second Ctrl-C ends them at once."""
    try:
        for child in children:
            if child.process.is_alive():
                os.kill(child.process.pid or 0, signal.SIGINT)
        for child in children:
            while not child.has_ended():
                pass
    except KeyboardInterrupt:
        for child in children:
            child.process.kill()
            child.process.join()
        raise


class _ToParent(QueueHandler):
    """Sends log records to the process that started this one, beginning with the name of the run."""

    def __init__(self, connection: Connection, name: str) -> None:
        super().__init__(cast("Any", connection))
        self._connection = connection
        self.setFormatter(logging.Formatter(f"{name:8} %(message)s"))

    def enqueue(self, record: logging.LogRecord) -> None:
        """One record."""
        self._connection.send(record)

    def send_last(self, error: BaseException) -> None:
        """What ended the run; of an error that cannot be sent, its words."""
        try:
            copy.copy(error)  # made anew as the other process will have to
            pickle.dumps(error)
        except (TypeError, AttributeError, pickle.PicklingError):
            error = RunError(str(error))
        with self.lock or contextlib.nullcontext():
            self._connection.send(error)


class _NoTerminal(io.TextIOWrapper):
    """Standard error of a child: progress bars of several at once would write over each other."""

    def isatty(self) -> bool:
        """No, whatever it is."""
        return False


def _in_child(job: Job, run: Run, threads: int, tuned: bool, said: Connection) -> None:
    if tuned:
        tune_allocator()
    os.setpgrp()  # Ctrl-C comes from the parent alone, once
    threading.Thread(target=end_with_parent, daemon=True).start()
    raw = os.fdopen(os.dup(2), "wb")
    sys.stderr = _NoTerminal(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
    handler = _ToParent(said, job.name)
    for package in _PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        torch.set_num_threads(threads)
        run(job.folder, job.config, job.resume)
    except BaseException as error:
        handler.send_last(error)
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from error
