"""What a student costs where it runs: the figures, and how they look as a table and as JSON.

Measures nothing: `pipeline.benchmark` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cache.errors import printable
from pipeline.machine import Machine

_MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast one model is on so many threads, from an image in memory to its logits in memory."""

    threads: int
    p50_ms: float
    """Median of the passes of one image, milliseconds."""
    p95_ms: float
    p99_ms: float
    n_runs: int
    """Passes of one image that these percentiles are of."""
    images_per_s: float
    """Images of a batch over the median time of a pass of it."""
    n_passes: int
    """Passes of a batch that this median is of."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fresh process: its speed, and what it takes from its start to its end."""

    speed: Speed
    import_s: float
    """Seconds for importing the runtime."""
    load_s: float
    """Seconds for loading the file."""
    first_ms: float
    """Milliseconds of the very first image, while the runtime still prepares itself."""
    runtime_bytes: int | None
    """Peak memory with the runtime imported and the file not opened yet; None where the system does not tell."""
    one_bytes: int | None
    """Peak memory after images one by one."""
    batch_bytes: int | None
    """Peak memory after batches, too."""
    device_bytes: int | None
    """Peak memory of tensors on a GPU; None on a CPU, and on MPS."""


@dataclass(frozen=True, kw_only=True)
class TeacherCost:
    """The image side of a teacher, as `cache build` runs it."""

    name: str
    size_px: int
    precision: str
    n_parameters: int | None
    """Of the image tower; None for a program that keeps its weights as constants."""
    n_bytes: int | None
    """Of these in memory, float32."""
    speeds: tuple[Speed, ...]
    """One for each number of threads, as the student's rows."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All that was measured of one student."""

    model: str
    student: str | None
    """What its card calls it; None for a file without one."""
    format: str
    runtime: str
    device: str
    machine: Machine
    size_px: int
    batch_size: int
    n_bytes: int
    """Of the file."""
    weights_bytes: int | None
    """Of its weights and buffers; None where the format does not show them."""
    n_parameters: int | None
    rows: tuple[Row, ...]
    """One for each number of threads, in the order asked for."""
    teacher: TeacherCost | None
    notices: tuple[str, ...]
    latency_ms: float | None
    """The budget that was asked for."""

    @property
    def is_within_budget(self) -> bool:
        """Whether the median of one image is within the budget in every row; True without a budget."""
        return self.latency_ms is None or all(row.speed.p50_ms <= self.latency_ms for row in self.rows)

    @property
    def verdict(self) -> str:
        """One line on the budget; empty without one."""
        if self.latency_ms is None:
            return ""
        found = ", ".join(f"{row.speed.p50_ms:.1f} ms on {_threads(row.speed.threads)}" for row in self.rows)
        return f"p50 {found}: {'within' if self.is_within_budget else 'over'} the budget of {self.latency_ms:g} ms"

    @property
    def ratios(self) -> dict[str, float]:
        """How many times the teacher's figure is the student's, on the most threads; empty without a teacher."""
        if self.teacher is None:
            return {}
        mine, theirs = (max(speeds, key=lambda speed: speed.threads) for speeds in (self._speeds, self.teacher.speeds))
        times = {"p50_ms": theirs.p50_ms / mine.p50_ms, "images_per_s": mine.images_per_s / theirs.images_per_s}
        return {**times, **({"bytes": self.teacher.n_bytes / self.n_bytes} if self.teacher.n_bytes else {})}

    @property
    def _speeds(self) -> tuple[Speed, ...]:
        return tuple(row.speed for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        rows = [{**asdict(row.speed), **{k: v for k, v in asdict(row).items() if k != "speed"}} for row in self.rows]
        ratios = {"ratios": self.ratios} if self.teacher else {}
        verdict = {} if self.latency_ms is None else {"is_within_budget": self.is_within_budget}
        return {**asdict(self), "rows": rows, "notices": list(self.notices), **ratios, **verdict}

    def to_table(self) -> str:
        """For people."""
        return "\n".join(map(printable, self._lines()))

    def _lines(self) -> Iterator[str]:
        weights = f", weights {self.weights_bytes / _MB:.2f} MB" if self.weights_bytes else ""
        parameters = f", {self.n_parameters:,} parameters" if self.n_parameters else ""
        yield f"{self.model}: {self.format}, {self.n_bytes / _MB:.2f} MB{weights}{parameters}"
        machine = self.machine
        usable = f" ({machine.n_usable} of them usable)" if machine.n_usable != machine.n_cores else ""
        yield (
            f"{self.student or 'no card'} at {self.size_px} px by {self.runtime} on "
            f"{self.device if self.device != 'cpu' else machine.cpu}, {_cores(machine.n_cores)}{usable}"
        )
        yield ""
        yield from _aligned([self._head(), *self._cells()])
        yield ""
        yield from self._beside()
        yield from (f"notice   {notice}" for notice in self.notices)

    def _head(self) -> tuple[str, ...]:
        columns = ("", "threads", "p50 ms", "p95 ms", "p99 ms", "runs", f"images/s by {self.batch_size}", "passes")
        memory = ("peak MB", f"by {self.batch_size}") if self._has_memory else ()
        return (*columns, *memory, *(("GPU MB",) if self._has_gpu_memory else ()))

    def _cells(self) -> Iterator[tuple[str, ...]]:
        n_columns = len(self._head())
        for row in self.rows:
            memory = (_mb(row.one_bytes), _mb(row.batch_bytes)) if self._has_memory else ()
            gpu = (_mb(row.device_bytes),) if self._has_gpu_memory else ()
            yield ("student", *_speed_cells(row.speed), *memory, *gpu)
        for speed in self.teacher.speeds if self.teacher else ():
            cells = ("teacher", *_speed_cells(speed))
            yield (*cells, *("-" for _ in range(n_columns - len(cells))))

    def _beside(self) -> Iterator[str]:
        """What stands in no column."""
        row = self.rows[0]
        runtime = (
            f"; of the peak memory the runtime alone takes {_mb(row.runtime_bytes)} MB" if self._has_memory else ""
        )
        yield (
            f"start    {row.import_s:.2f} s to import the runtime, {row.load_s:.2f} s to load the file, "
            f"{row.first_ms:,.0f} ms for the first image{runtime}"
        )
        if self.teacher:
            teacher, ratios = self.teacher, self.ratios
            weighs, bytes_of = "", ""
            if teacher.n_bytes:
                weighs = f": {teacher.n_parameters:,} parameters of the image side, {teacher.n_bytes / _MB:,.2f} MB"
                bytes_of = f"; the teacher has {ratios['bytes']:,.1f} times the bytes of its file"
            how = f"{teacher.size_px} px in {teacher.precision}, as cache build runs it"
            yield f"teacher  {teacher.name} at {how}{weighs}"
            yield (
                f"student  {ratios['p50_ms']:,.1f} times as fast as the teacher at one image, "
                f"{ratios['images_per_s']:,.1f} times by {self.batch_size}{bytes_of}"
            )

    @property
    def _has_memory(self) -> bool:
        return all(row.batch_bytes is not None for row in self.rows)

    @property
    def _has_gpu_memory(self) -> bool:
        return any(row.device_bytes is not None for row in self.rows)


def _speed_cells(speed: Speed) -> tuple[str, ...]:
    times = (f"{value:,.2f}" for value in (speed.p50_ms, speed.p95_ms, speed.p99_ms))
    return (str(speed.threads), *times, f"{speed.n_runs:,}", f"{speed.images_per_s:,.1f}", f"{speed.n_passes:,}")


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Names to the left, numbers to the right, two blanks between columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join((f"{name:{widths[0]}}", *numbers))


def _mb(n_bytes: int | None) -> str:
    return "-" if n_bytes is None else f"{n_bytes / _MB:,.0f}"


def _threads(n: int) -> str:
    return f"{n} thread{'s' * (n != 1)}"


def _cores(n: int) -> str:
    return f"{n} core{'s' * (n != 1)}"
