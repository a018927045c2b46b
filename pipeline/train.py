"""Stage two: train a student on cached views and logits. No teacher is in memory, nor is its code.

Views, classes and teacher answers come from the cache, images from the data folder, joined by content. `last.pt` is
written after every epoch; an interrupted run goes on from it. Run: softlabel train DATA t.h5 -o RUN
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cache import open_caches
from data.options import ScanOptions
from pipeline.arguments import check_data_and_cache
from pipeline.bad_images import scan_like
from pipeline.errors import OutputExists
from pipeline.gate.check import check_teacher
from pipeline.machine import this_machine
from pipeline.outputs import check_output_folder
from pipeline.process import resolve_device
from pipeline.runs import RunFolder
from pipeline.start import without_garbage_collection
from pipeline.training.config import TrainConfig
from pipeline.training.pixels import PixelOptions
from pipeline.training.process_settings import ProcessOptions
from pipeline.training.trainer import Trainer, TrainResult


def train(
    data: str | Path,
    cache: str | Path | Sequence[str | Path],
    out: str | Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    anyway: bool = False,
    device: str = "auto",
    workers: int | None = None,
    report: bool = True,
    process: ProcessOptions = ProcessOptions(),
    scan: ScanOptions = ScanOptions(),
    pixels: PixelOptions = PixelOptions(),
) -> TrainResult:
    """Train a student, or with `resume` go on with the run in `out`; several caches of one recipe are taken as one.

    At its end the verdicts are logged, and `report` writes OUT/report.html. WeakTeacher stops a new run with a teacher
    that nobody should learn from, unless `anyway`. `pixels` says what is kept of rendered views or decoded images; no
    number of the run depends on it, so that `resume` may go with another choice.
    Raises DataError, CacheError, OverBudget, OutputExists or another PipelineError before the first step.
    On one machine's CPU and thread count a resumed run ends with the numbers of an undisturbed one; GPU kernels add up
    in no fixed order.
    """
    caches = [cache] if isinstance(cache, (str, Path)) else list(cache)
    check_data_and_cache(data, caches, "train DATA CACHE")
    check_output_folder(out)
    run = RunFolder(out)
    if not resume:
        _check_new(run)
    with contextlib.ExitStack() as stack:
        start = stack.enter_context(contextlib.ExitStack())
        start.enter_context(without_garbage_collection())
        previous = None
        if resume:
            run.load_last()  # or says that there is nothing to go on with, before a lock makes the folder
            stack.enter_context(run.held())
            previous = run.load_last()
            config, process = _as_begun(previous, config, process)
        # Read, not mapped: somebody may copy another file over the cache while this runs for hours.
        reader = open_caches(caches, memory_map=False)
        images = scan_like(reader, data, scan)
        training = Trainer(
            run, reader, images, config, resolve_device(device), workers, scan.skip_bad_images, resumed=resume,
            process=process, pixels=pixels,
        )  # fmt: skip
        worth = training.announce()
        if previous is None:
            if config.teacher and not anyway:
                name = caches[0] if len(reader.paths) == 1 else reader.path
                for of_task in worth.values():
                    check_teacher(of_task, reader, name, images.words)
            stack.enter_context(run.held())
            _check_new(run)  # another process may have begun and ended one meanwhile
        else:
            training.restore(previous)
        start.close()
        return training.run_epochs(report)


def train_into(
    folder: Path, config: TrainConfig, resume: bool, *, data: str | Path, cache: Sequence[str | Path], **options: Any
) -> TrainResult:
    """`train` for whoever gives folder and settings later, or in another process; `options` are its others."""
    return train(data, cache, folder, config, resume=resume, **options)


def _as_begun(
    previous: dict[str, Any], config: TrainConfig, process: ProcessOptions
) -> tuple[TrainConfig, ProcessOptions]:
    """Settings that a run chose by itself, as it chose them: last digits depend on the number of threads."""
    threads, batch_size = previous.get("threads"), previous["config"].get("batch_size")
    if process.threads is None and isinstance(threads, int) and 1 <= threads <= this_machine().n_usable:
        process = replace(process, threads=threads)
    if not config.batch_size and isinstance(batch_size, int):
        config = replace(config, batch_size=batch_size)
    return config, process


def _check_new(run: RunFolder) -> None:
    if run.exists():
        go_on = "go on with it by --resume, or " if run.last.exists() else ""
        raise OutputExists(f"{run.path} is not empty: {go_on}choose another -o")


def saved_config(run: str | Path) -> TrainConfig:
    """The settings of an interrupted run; RunError where there is none."""
    saved = RunFolder(run).load_last()["config"]
    return TrainConfig(**{field.name: saved[field.name] for field in fields(TrainConfig) if field.name in saved})
