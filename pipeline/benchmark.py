"""Measure what a student costs where it runs: latency, throughput, memory, bytes; a teacher beside it where asked for.

Never measures how good it is (`pipeline.evaluate`). Run: softlabel benchmark student_model.pt
N images of a batch, S pixels, K outputs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.card import StudentCard
from pipeline.costs import Benchmark, Row, Speed, TeacherCost
from pipeline.errors import RunError, SettingError
from pipeline.formats import torchscript
from pipeline.formats.fresh import FreshProcess
from pipeline.formats.names import format_of
from pipeline.inference import load_student
from pipeline.machine import Machine, this_machine
from pipeline.process import resolve_device
from pipeline.students.budget import n_parameters
from pipeline.students.build import tensor_bytes
from pipeline.teachers.loading import name_without_path, open_teacher
from pipeline.teachers.teacher import Teacher, resolve_precision

log = logging.getLogger(__name__)

DEVICES = ("cpu", "cuda", "mps")
MAX_BATCH_SIZE = 4096
_MAX_THREADS = 1024
_MIN_RUNS = 200
"""Passes of one image: p99 is then the third worst, not the worst."""
_MIN_PASSES = 5
"""Of a batch."""
_PATIENCE = 6
"""So many times `seconds` the least numbers above may take; a slow model is timed less often."""
_FEWEST = 3
_MOST_RUNS = 100_000

Timed = Callable[[float, int], NDArray[np.float64]]
"""(seconds of warm-up, runs) -> seconds of each run."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured, and how long."""

    batch_size: int = 32
    """Images in a pass for the throughput; 1 to 4096."""
    threads: tuple[int, ...] = ()
    """A row for each of these numbers; empty takes as many as this process has cores."""
    seconds: float = 5.0
    """How long one image after another is timed, and then batch after batch, in each row."""
    device: str = "cpu"
    """cpu, cuda or mps; no `auto`, as a student is made for the CPU."""
    size_px: int | None = None
    """Input size, for a file without a card, or to try another one."""
    teacher: str | None = None
    """A folder, file or name of a teacher of any kind (`pipeline.teachers.loading`)."""
    latency_ms: float | None = None
    """The budget for one image."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MAX_BATCH_SIZE:
            raise SettingError(f"batch_size must be in 1..{MAX_BATCH_SIZE}, got {self.batch_size}")
        if wrong := [n for n in self.threads if not 1 <= n <= _MAX_THREADS]:
            raise SettingError(f"threads must be in 1..{_MAX_THREADS}, got {wrong[0]}")
        if not 0 < self.seconds < math.inf:
            raise SettingError(f"seconds must be positive, got {self.seconds}")
        if self.device not in DEVICES:
            raise SettingError(f"device must be one of {', '.join(DEVICES)}, got '{self.device}'")
        if self.size_px is not None and not 1 <= self.size_px <= 4096:
            raise SettingError(f"size_px must be in 1..4096, got {self.size_px}")
        if self.latency_ms is not None and not 0 < self.latency_ms < math.inf:
            raise SettingError(f"latency_ms must be positive, got {self.latency_ms}")


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """The file that is measured, and what is known of it."""

    path: Path
    format: str
    card: StudentCard | None
    size_px: int
    weights_bytes: int | None
    n_parameters: int | None


def benchmark(model: str | Path, config: BenchmarkConfig = BenchmarkConfig()) -> Benchmark:
    """Time a run folder's student or an exported file of any format in fresh processes, one for each row of threads.

    Each process holds the runtime and the file alone. One image after another, of noise, is timed from its float32
    pixels in memory to its logits in memory: p50, p95 and p99 are numpy's percentiles of all these passes, at least
    200 of them unless that takes over six times `seconds`. Images per second are N over the median pass of a batch of
    N. Reading, decoding and normalising an image are not in it. Raises SettingError, RunError or TeacherError.
    """
    resolve_device(config.device)
    machine = this_machine()
    threads = config.threads or (machine.n_usable,)
    with _as_file(Path(model)) as path:
        subject = _subject(path, config)
        teacher = _open_teacher(subject, config) if config.teacher else None
        rows, runtime = [], ""
        for n_threads in threads:
            row, runtime = _row(subject, n_threads, config)
            rows.append(row)
        n_bytes = path.stat().st_size
    return Benchmark(
        model=str(model), student=subject.card.student if subject.card else None, format=subject.format,
        runtime=runtime, device=config.device, machine=machine, size_px=subject.size_px, batch_size=config.batch_size,
        n_bytes=n_bytes, weights_bytes=subject.weights_bytes, n_parameters=subject.n_parameters, rows=tuple(rows),
        teacher=_teacher_cost(teacher, threads, config) if teacher else None,
        notices=tuple(_notices(subject.card, machine, threads, config)), latency_ms=config.latency_ms,
    )  # fmt: skip


@contextlib.contextmanager
def _as_file(model: Path) -> Iterator[Path]:
    """The file itself; of a run folder its best student as TorchScript, in a temporary folder that is gone after."""
    if not model.is_dir():
        yield model
        return
    student = load_student(model, "cpu")
    with tempfile.TemporaryDirectory(prefix="softlabel-") as folder:
        path = Path(folder) / "student_model.pt"
        path.write_bytes(torchscript.to_bytes(student.module, student.card))
        yield path


def _subject(path: Path, config: BenchmarkConfig) -> _Subject:
    """RunError for what is no model; SettingError where it cannot be run here."""
    format_name = format_of(path)
    if format_name == "onnx":
        if config.device != "cpu":
            raise SettingError(f"{path} is an ONNX file, which is timed on the CPU: leave --device out")
        if importlib.util.find_spec("onnxruntime") is None:
            raise SettingError(f"{path} is run by onnxruntime, which is not installed: pip install '.[onnx]'")
    module, card = _opened(path, format_name, config)
    if card is None and config.size_px is None:
        raise RunError(f"{path} does not say which images it takes: say their size in pixels, such as --size 224")
    is_torch = isinstance(module, torch.nn.Module)
    return _Subject(
        path=path, format=format_name, card=card, size_px=config.size_px or (card.size_px if card else 0),
        # What torch.jit.freeze made constants is not to be seen: 0 of either is "not known".
        weights_bytes=(is_torch and tensor_bytes(module)) or None,
        n_parameters=(is_torch and n_parameters(module)) or None,
    )  # fmt: skip


def _opened(path: Path, format_name: str, config: BenchmarkConfig) -> tuple[Any, StudentCard | None]:
    """(module, card) where the file has a card, or is TorchScript; (None, None) of others, if their size is given."""
    if format_name == "torchscript":
        return torchscript.load_any(path)
    try:
        student = load_student(path, "cpu")
    except RunError:
        if config.size_px is None:
            raise
        return None, None  # the fresh process says what is wrong, if anything is
    return student.module, student.card


def _row(subject: _Subject, threads: int, config: BenchmarkConfig) -> tuple[Row, str]:
    """(what one fresh process measured, its runtime)."""
    log.info("timing %s, threads: %d", subject.path.name, threads)
    shape = (config.batch_size, 3, subject.size_px, subject.size_px)
    inputs = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with FreshProcess(subject.path, subject.format, threads=threads, device=config.device) as process:
        started = time.perf_counter()
        process.logits(inputs[:1])
        first_ms = (time.perf_counter() - started) * 1e3
        one = _timed(
            lambda warmup_s, runs: process.timings(inputs[:1], warmup_s=warmup_s, runs=runs), _MIN_RUNS, config
        )
        one_bytes = process.peak_bytes
        batch = _timed(
            lambda warmup_s, runs: process.timings(inputs, warmup_s=warmup_s, runs=runs), _MIN_PASSES, config
        )
        row = Row(
            speed=_speed(threads, one, batch, config), import_s=process.import_s, load_s=process.load_s,
            first_ms=first_ms, runtime_bytes=process.runtime_bytes, one_bytes=one_bytes,
            batch_bytes=process.peak_bytes, device_bytes=process.device_peak_bytes,
        )  # fmt: skip
        return row, process.runtime


def _timed(timed: Timed, at_least: int, config: BenchmarkConfig) -> NDArray[np.float64]:
    """Seconds of each run: as many as fit into `seconds`, but for the least number; after a fifth of it of warm-up.

    They are asked for in portions that double, as the first ones alone are a poor guess of how many will fit.
    """
    seconds = timed(config.seconds / 5, _FEWEST)
    while len(seconds) < _MOST_RUNS:
        left_s, n_lacking = config.seconds - float(seconds.sum()), at_least - len(seconds)
        if left_s <= 0 and (n_lacking <= 0 or left_s <= (1 - _PATIENCE) * config.seconds):
            break
        fitting = math.ceil(max(left_s, 0) / max(float(np.median(seconds)), 1e-6))
        seconds = np.concatenate([seconds, timed(0, min(len(seconds), max(fitting, n_lacking)))])
    return seconds


def _speed(threads: int, one: NDArray[np.float64], batch: NDArray[np.float64], config: BenchmarkConfig) -> Speed:
    p50, p95, p99 = (float(value) for value in np.percentile(one * 1e3, (50, 95, 99)))
    return Speed(
        threads=threads, p50_ms=p50, p95_ms=p95, p99_ms=p99, n_runs=len(one),
        images_per_s=config.batch_size / float(np.median(batch)), n_passes=len(batch),
    )  # fmt: skip


def _open_teacher(subject: _Subject, config: BenchmarkConfig) -> Teacher:
    """Loaded as for a build. What its prompts say makes no difference to its image side: the bare class names do."""
    assert config.teacher is not None
    if subject.card is None:
        raise SettingError(
            f"{subject.path} does not say its classes, of which the teacher is asked: leave --teacher out"
        )
    tasks = subject.card.every_task
    return open_teacher(
        config.teacher, tasks, {name: (name,) for name in tasks.outputs},
        device=config.device, precision=resolve_precision("auto", config.device),
    )  # fmt: skip


def _teacher_cost(teacher: Teacher, threads: tuple[int, ...], config: BenchmarkConfig) -> TeacherCost:
    """Uint8 views to logits in this process, by the calls of `cache build`: tower and head."""
    assert config.teacher is not None
    shape = (config.batch_size, 3, teacher.size_px, teacher.size_px)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, speeds = torch.get_num_threads(), []
    try:
        for n_threads in threads:
            log.info("timing the teacher %s, threads: %d", config.teacher, n_threads)
            torch.set_num_threads(n_threads)
            one = _timed(_passes_of(teacher, pixels[:1]), _MIN_RUNS, config)
            batch = _timed(_passes_of(teacher, pixels), _MIN_PASSES, config)
            speeds.append(_speed(n_threads, one, batch, config))
    finally:
        torch.set_num_threads(before)
    return TeacherCost(
        name=name_without_path(config.teacher), size_px=teacher.size_px, precision=teacher.precision,
        n_parameters=teacher.n_parameters or None, n_bytes=4 * teacher.n_parameters or None, speeds=tuple(speeds),
    )  # fmt: skip


def _passes_of(teacher: Teacher, pixels: torch.Tensor) -> Timed:
    def timed(warmup_s: float, runs: int) -> NDArray[np.float64]:
        seconds: list[float] = []
        begun = time.perf_counter()
        while len(seconds) < runs:
            started = time.perf_counter()
            teacher.head.logits(teacher.embed(pixels))
            ended = time.perf_counter()
            if started - begun >= warmup_s:
                seconds.append(ended - started)
        return np.array(seconds)

    return timed


def _notices(
    card: StudentCard | None, machine: Machine, threads: tuple[int, ...], config: BenchmarkConfig
) -> Iterator[str]:
    if machine.is_busy:
        yield (
            f"the machine was busy before this began (load {machine.load:.1f} on {machine.n_cores} cores): the times "
            "are upper bounds, the images per second lower ones"
        )
    if max(threads) > machine.n_usable:
        yield f"{max(threads)} threads are more than this process has cores ({machine.n_usable})"
    if card and config.size_px not in (None, card.size_px):
        yield f"the student was trained at {card.size_px} px, and was timed at {config.size_px}"
    if card and card.taught and card.teacher and config.teacher is None:
        yield f"its teacher called itself {card.teacher}: --teacher NAME times it beside"
