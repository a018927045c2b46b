"""One run of stage two in this process: its student, its lessons, its epochs, what is saved after each.

Reads no flags, takes no lock and starts no run folder (`pipeline.train` does). Run: softlabel train DATA t.h5 -o RUN
N samples, B batch, T tasks, K columns of all of them, S pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cache import CacheReader
from cache.errors import printable
from data.loaders import StudentLoader, default_workers
from data.samples import Sample, SampleSet
from data.threads import loading_threads
from pipeline.card import StudentCard
from pipeline.errors import RunError, SettingError, did_you_mean
from pipeline.gate.check import short_lines
from pipeline.gate.report import TeacherReport, teacher_reports
from pipeline.inference import normalise
from pipeline.joining import join
from pipeline.process import deferred_interrupts, derived_seed
from pipeline.ranks import ALONE, Ranks
from pipeline.report.closing import FinishedRun, close
from pipeline.runs import CHECKPOINT_FORMAT, RunFolder
from pipeline.students.budget import n_parameters, weigh
from pipeline.students.prepare import prepare_student
from pipeline.tasks import Tasks, label_bytes
from pipeline.training.banner import banner
from pipeline.training.batches import with_batch_size
from pipeline.training.config import TrainConfig, other_settings
from pipeline.training.held_out import check_left, split_off_validation
from pipeline.training.labels import class_weights, logit_offsets
from pipeline.training.learner import Learner, Step, Tally
from pipeline.training.lessons import EpochPlan, Lessons
from pipeline.training.optimisation import temperature_at
from pipeline.training.pixels import PixelOptions, choose_pixels
from pipeline.training.precision import resolve_precision
from pipeline.training.process_settings import ProcessOptions, settle
from pipeline.training.rows import chosen_by, score_columns
from pipeline.training.together import Together, same_row, same_state
from pipeline.training.validation import Validator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    path: Path
    best_epoch: int
    """1 for the first."""
    best_macro_f1: float
    """Of the moving average on the validation images, in [0, 1]."""
    wall_s: float
    """Seconds of all epochs of this call."""


class Trainer:
    """The state of one run in this process."""

    def __init__(
        self, run: RunFolder, reader: CacheReader, images: SampleSet, config: TrainConfig, device: str,
        workers: int | None, skip_bad_images: bool, *, resumed: bool, process: ProcessOptions, pixels: PixelOptions,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self._run, self._device, self._reader, self._ranks = run, device, reader, ranks
        learners, validators, self._val_source = split_off_validation(images, config.val_fraction, config.seed)
        targets = join(
            reader, {"train": learners, "val": validators}, images.words, images.classes,
            narrow=images.is_narrowed, clean=["val"], skip_bad_images=skip_bad_images, verified=True,
        )  # fmt: skip
        check_left(targets, images)
        config = self._config = with_batch_size(config, len(targets["train"].samples), device)
        self._lessons = Lessons(targets["train"], config)
        learn, tasks = self._lessons.targets, self._lessons.tasks
        _check_best_by(config.best_by, tasks)
        self._student = prepare_student(
            config.student, tasks.outputs, config.student_size_px, seed=derived_seed(config.seed, "weights"),
            init="none" if resumed else config.init, dropout=config.dropout,
        )  # fmt: skip
        self._card = StudentCard(
            student=self._student.source.name, tasks=dict(tasks),
            size_px=config.student_size_px, geometry=learn.geometry, cache_id=reader.cache_id,
            taught=config.teacher, teacher=str(reader.manifest.provenance.get("teacher", "")),
        )  # fmt: skip
        model = self._student.module
        self._artefact = weigh(model, self._card, config.budget_mb)
        self._pixels = choose_pixels(pixels, {**targets, "train": learn}, config)
        learn.check_witness(self._pixels.source.batch, config.seed)
        labels_NT = self._lessons.labels_NT
        weights_K = class_weights(config.class_weights, labels_NT, tasks)
        offsets_K = logit_offsets(config.logit_adjustment, labels_NT, tasks)
        precision = resolve_precision(config.precision, device)
        self._process = settle(
            model, process, device, precision, config.optimizer, config.student_size_px, config.batch_size
        )
        self._learner = Learner(
            model.to(device=device, memory_format=self._process.layout),  # type: ignore[call-overload]
            config, device, tasks, fused=self._process.fused,
            class_weights_K=_on(device, weights_K), logit_offsets_K=_on(device, offsets_K),
        )  # fmt: skip
        if not ranks.is_alone:
            self._learner.restore(same_state(ranks, self._learner.state()))
        if workers is None:  # threads are enough to read views that stand
            workers = 0 if self._pixels.choice == "views" else ranks.workers(default_workers(device))
        self._n_workers = workers
        self._load = StudentLoader(
            config.student_size_px, learn.geometry, workers, source=self._pixels.source, device=device
        )
        self._validate = Validator(targets["val"], self._card, self._load, device, ranks)
        self._ids = {
            "recipe_id": reader.recipe_id, "cache_id": reader.cache_id, "seal": reader.seal.hex(),
            "images": _key_digest(tasks, learners, validators), "class_weights": _digest_of(weights_K),
            **self._student.ids,
        }  # fmt: skip
        keys = bytearray(b"".join(sample.key for sample in self._lessons.samples))
        self._learned_keys = torch.frombuffer(keys, dtype=torch.uint8).view(-1, 16)
        self._epoch, self._metrics, self._stopped_early = 0, list[dict[str, Any]](), False
        self._best, self._best_model = {"epoch": 0, "macro_f1": -1.0}, dict[str, Tensor]()

    def announce(self) -> dict[str, TeacherReport]:
        """Say what is trained on what; what the teacher is worth in each task is also returned."""
        config = self._config
        for line in self._student.init_report:
            log.info("init     %s", printable(line))
        for line in banner(
            self._lessons, len(self._validate.targets.samples), self._val_source, config,
            n_parameters=n_parameters(self._learner.model),
            artefact=self._artefact, process=self._process, workers=self._n_workers,
        ):  # fmt: skip
            log.info("%s", line)
        missing = "missing ones " if self._pixels.choice == "views" else ""
        loaded = f"; {missing}{loading_threads(self._device).to_text()}" if not self._n_workers else ""
        log.info("pixels   %s%s", printable(self._pixels.line), loaded)
        self._teacher = teacher_reports(self._validate.targets, "val", self._lessons.targets)
        for task, report in self._teacher.items():
            of_task = f"{task}: " if len(self._teacher) > 1 else ""
            for line in short_lines(report, config.temperature if config.teacher else None):
                log.info("teacher  %s", printable(f"{of_task}{line}"))
        return self._teacher

    def restore(self, previous: dict[str, Any]) -> None:
        """Take up a checkpoint; RunError lists every setting or input that is not the run's own."""
        differing, changed = other_settings(previous["config"], self._config), dict(_CHANGED)
        named = (previous["config"].get("cache"), _named(self._reader))
        if named[0] != named[1] and any(isinstance(one, list) for one in named):
            begun, got = (", ".join(one) if isinstance(one, list) else one for one in named)
            changed["seal"] = f"it was begun with {begun}, and got {got}: name the same caches in the same order"
        differing += [
            f"{what}, or start a new run with another -o" for name, what in changed.items()
            if previous["ids"].get(name, self._ids[name]) != self._ids[name]
        ]  # fmt: skip
        if differing:
            raise RunError(f"{self._run.path} cannot go on with other settings:\n  " + "\n  ".join(differing))
        if previous["threads"] != torch.get_num_threads():
            log.info("the run had %d threads: its last digits may differ", previous["threads"])
        if (n_ranks := previous.get("ranks", 1)) != self._ranks.world_size:
            log.info("the run was of %d ranks, and is of %d: last digits differ", n_ranks, self._ranks.world_size)
        self._student.check_resumes(previous)
        self._learner.restore(previous)
        self._epoch, self._metrics, self._best = previous["epoch"], previous["metrics"], previous["best"]
        self._best_model = previous["best_model"]
        self._stopped_early = previous.get("stopped_early", False)
        if self._ranks.is_first:
            self._run.follow(previous, self._card)
        log.info("resumed  after epoch %d of %d", self._epoch, self._config.epochs)

    def run_epochs(self, report: bool) -> TrainResult:
        """All epochs that are left, and the words at the end."""
        started = time.perf_counter()
        ranks = self._ranks
        self._pixels.source.begin()
        with (
            deferred_interrupts(notice=ranks.is_first) as self._check_interrupt,
            ranks.explained_by(self._check_interrupt),
        ):
            if not ranks.is_alone:
                self._learner.together = Together(ranks, self._learner.model, self._check_interrupt)
            if not self._metrics:
                self._save()  # an interrupt in the first epoch has something to resume from
            while self._epoch < self._config.epochs and not self._stopped_early:
                row = self._one_epoch(self._epoch)
                self._epoch += 1
                self._metrics.append(row)
                score = chosen_by(row, self._config.best_by)
                if is_best := score > self._best["macro_f1"]:
                    self._best = {"epoch": self._epoch, "macro_f1": score}
                    weights = self._learner.average.state_dict()
                    self._best_model = {name: tensor.clone() for name, tensor in weights.items()}
                patience = self._config.early_stopping
                self._stopped_early = 0 < patience <= self._epoch - self._best["epoch"]
                self._save()
                log.info("%s%s", _epoch_line(row, self._config.epochs), "  *" if is_best else "")
            if self._stopped_early:
                log.info("stopped  %d epochs without a better macro F1", self._config.early_stopping)
            verdicts = close(self._finished(), self._check_interrupt, report=report) if ranks.is_first else []
            for verdict in verdicts:
                log.info("verdict  %s", printable(verdict.line))
            ranks.barrier()
        wall_s = time.perf_counter() - started
        return TrainResult(self._run.path, int(self._best["epoch"]), self._best["macro_f1"], wall_s)

    def _finished(self) -> FinishedRun:
        return FinishedRun(
            folder=self._run, config=self._config, card=self._card, rows=self._metrics, ids=self._ids,
            teachers=self._teacher, train=self._lessons.targets, validate=self._validate.alone(),
            learned=self._lessons.samples, n_parameters=n_parameters(self._learner.model), artefact=self._artefact,
            device=self._device,
        )  # fmt: skip

    def _one_epoch(self, epoch: int) -> dict[str, Any]:
        started, started_cpu_s = time.perf_counter(), time.process_time()
        ranks, together = self._ranks, self._learner.together
        torch.manual_seed(derived_seed(self._config.seed, epoch, "dropout", *[ranks.rank] * (not ranks.is_first)))
        plan = self._lessons.epoch(epoch)
        n_batches = len(plan.batches)
        total_steps = n_batches * self._config.epochs
        tally = Tally(list(self._card.tasks))
        self._learner.model.train()
        batches = together.parts(plan.batches) if together else plan.batches
        with contextlib.closing(self._load(batches)) as loaded:
            for number, (pixels, draw_B) in enumerate(_progress(loaded, n_batches, epoch, shown=ranks.is_first)):
                if number == 0 and plan.rows_M is not None:
                    first = draw_B.numpy()
                    self._lessons.targets.check_pixels(pixels, plan.sample_M[first], plan.rows_M[first])
                tally.add(self._step(pixels, draw_B.numpy(), plan, epoch * n_batches + number, total_steps))
                if together is None:  # else all stop at the same step
                    self._check_interrupt()
        trained_s = time.perf_counter() - started
        found = self._validate(self._learner.average, self._check_interrupt)
        if not (found.is_finite() and self._learner.is_finite()):
            raise RunError(
                f"the weights are infinite or undefined after step {(epoch + 1) * n_batches:,} of {total_steps:,}, "
                f"whose loss was finite; {self._run.last} holds the state after epoch {epoch}. {self._likely_cause()}"
            )
        config, last_step = self._config, (epoch + 1) * n_batches - 1
        row = {
            "epoch": epoch + 1, "lr": self._learner.lr,
            "temperature": temperature_at(last_step, total_steps, config.temperature, config.temperature_end),
            "loss": tally.loss, **score_columns(tally.means(config.teacher), found),
            "images_per_s": tally.n_images / trained_s, "wall_s": time.perf_counter() - started,
            "cpu_s": time.process_time() - started_cpu_s,
        }  # fmt: skip
        return row if ranks.is_alone else same_row(ranks, row)

    def _step(self, pixels: Tensor, draw_B: NDArray[np.int64], plan: EpochPlan, step: int, total_steps: int) -> Step:
        said = self._lessons.told(plan, draw_B)
        labels_BT = torch.from_numpy(self._lessons.labels_NT[plan.sample_M[draw_B]]).to(self._device)
        teacher_BK = None if said is None else torch.from_numpy(said).to(self._device)
        inputs = normalise(pixels, self._card, self._device, self._process.layout)
        found = self._learner.step(inputs, teacher_BK, labels_BT, step, total_steps)
        if not math.isfinite(found.loss):
            raise RunError(
                f"the loss is {found.loss:g} in step {step + 1:,} of {total_steps:,} ({_parts(found, self._card)}); "
                f"{self._run.last} holds the state after epoch {self._epoch}. {self._likely_cause()}"
            )
        return found

    def _likely_cause(self) -> str:
        config = self._config
        if self._learner.precision == "fp16":
            return "The usual cause is the range of fp16: take --precision bf16 or fp32"
        return (
            f"The usual cause is a learning rate that is too high (now {config.lr_peak:g}): lower --lr, "
            f"or pass --clip-norm 1 (now {config.clip_norm:g})"
        )

    def _save(self) -> None:
        if not self._ranks.is_first:
            return
        checkpoint = {
            "format": CHECKPOINT_FORMAT, "epoch": self._epoch, "best": self._best,
            "best_model": self._best_model, "metrics": self._metrics,
            "stopped_early": self._stopped_early,
            "config": {**asdict(self._config), "cache": _named(self._reader)},
            "ids": self._ids, "threads": torch.get_num_threads(), "learned_keys": self._learned_keys,
            "ranks": self._ranks.world_size, "launch": self._ranks.place.launch, **self._learner.state(),
        }  # fmt: skip
        if self._student.architecture is not None:
            checkpoint["architecture"] = self._student.architecture
        self._run.save(checkpoint, self._card)


_CHANGED = {
    "seal": "the cache was extended or rebuilt since: restore it",
    "images": "images were added, removed or relabelled since: restore them",
    "class_weights": "the file of class weights was changed since: restore it",
}


def _named(reader: CacheReader) -> str | list[str]:
    """Where the cache is, or each of several."""
    paths = [str(path) for path in reader.paths]
    return paths if len(paths) > 1 else paths[0]


def _key_digest(tasks: Tasks, *groups: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for group in groups:
        digest.update(len(group).to_bytes(8, "little"))
        for sample in group:
            digest.update(sample.key + label_bytes(sample, tasks))
    return digest.hexdigest()


def _parts(step: Step, card: StudentCard) -> str:
    named = zip(card.tasks, step.tasks, strict=True)
    parts = [f"{task if len(card.tasks) > 1 else ''} hard {one.hard:g}, soft {one.soft:g}" for task, one in named]
    return ";".join(parts).strip()


def _check_best_by(best_by: str, tasks: Tasks) -> None:
    if best_by not in ("mean", *tasks):
        known = ["mean", *tasks]
        raise SettingError(f"best_by must be {' or '.join(known)}, got {best_by!r}{did_you_mean(best_by, known)}")


def _digest_of(values: NDArray[np.float32] | None) -> str:
    return "" if values is None else hashlib.sha256(values.tobytes()).hexdigest()


def _on(device: str, values: NDArray[np.float32] | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values).to(device)


def _progress(batches: Iterator[tuple[Tensor, Tensor]], total: int, epoch: int, *, shown: bool) -> Any:
    disable = None if shown else True
    return tqdm(batches, total=total, desc=f"epoch {epoch + 1}", unit="batch", leave=False, disable=disable)


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    left_min = (epochs - row["epoch"]) * row["wall_s"] / 60
    left = f", {left_min:.0f} min left" if left_min >= 1 else ""
    return (
        f"epoch {row['epoch']:>3}/{epochs}  loss_hard {row['loss_hard']:.3f}  loss_soft {row['loss_soft']:.3f}  "
        f"val accuracy {row['val_accuracy']:.3f}  balanced {row['val_balanced_accuracy']:.3f}  "
        f"macro F1 {row['val_macro_f1']:.3f}  {row['images_per_s']:.0f} images/s{left}"
    )
