"""Stage two: train a student on cached views and logits. No teacher is in memory, nor is its code.

Views, classes and teacher answers come from the cache, images from the data folder, joined by content. `last.pt` is
written after every epoch; an interrupted run goes on from it. Run: softlabel train DATA t.h5 -o RUN
N samples, B batch, C classes, S pixels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cache import CacheReader
from cache.errors import printable
from data.loaders import StudentLoader, ViewItem, default_workers
from data.options import ScanOptions
from data.samples import FOLDER_TASK, Sample, SampleSet, scan_folder
from pipeline.errors import OutputExists, RunError, SettingError
from pipeline.gate.check import check_teacher, short_lines
from pipeline.gate.report import TeacherReport, teacher_report
from pipeline.inference import memory_format, normalise
from pipeline.joining import join
from pipeline.losses.distillation import LossParts, distillation_loss
from pipeline.metrics import Metrics, classification_metrics
from pipeline.optimisation import MovingAverage, learning_rate
from pipeline.outputs import check_output_folder
from pipeline.process import MAX_SEED, deferred_interrupts, derived_seed, resolve_device
from pipeline.runs import CHECKPOINT_FORMAT, RunFolder
from pipeline.students.budget import MB, check_budget
from pipeline.students.names import DEFAULT_STUDENT
from pipeline.students.prepare import prepare_student
from pipeline.torchscript import StudentCard
from pipeline.validation import check_left, split_off_validation

log = logging.getLogger(__name__)

TARGETS = ("view", "mean")
_N_CHECKED = 8
"""Views of a validation batch that are compared with what the teacher saw."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that a run's numbers depend on, apart from images, cache, device and thread count."""

    student: str = DEFAULT_STUDENT
    """Name of a classifier of torchvision or timm, or my_model.py:build."""
    student_size_px: int = 224
    """Side of the square that the student sees."""
    epochs: int = 40
    """Passes over the train images; each shows another view of every image."""
    temperature: float = 4.0
    """T of the soft loss; unitless, > 0."""
    alpha: float = 0.3
    """Weight of the hard loss, in [0, 1]; the soft loss has the rest."""
    lr_peak: float = 1e-3
    """Learning rate after warm-up; it then falls to 0 along a cosine."""
    batch_size: int = 32
    """Images in a training step."""
    weight_decay: float = 0.05
    ema_decay: float = 0.999
    """Decay of the moving average of weights, which is what is validated, kept and exported."""
    budget_mb: float = 25.0
    """Largest exported file, in megabytes of 1e6 bytes."""
    val_fraction: float = 0.15
    """Share of train that validates where the data has no val split; test is never used."""
    seed: int = 0
    teacher: bool = True
    """False: hard labels only, on the same views; the baseline of a distilled run."""
    target: str = "view"
    """Soft target of a view: the teacher's answer to it, or with "mean" the mean of its answers to all the views."""

    def __post_init__(self) -> None:
        ranges = {
            "student_size_px": (8, 4096), "epochs": (1, 1_000_000), "temperature": (1e-3, 1e3), "alpha": (0, 1),
            "lr_peak": (1e-9, 10), "batch_size": (2, 1_000_000), "weight_decay": (0, 10), "ema_decay": (0, 0.999999),
            "budget_mb": (0.001, 1e6), "val_fraction": (0.01, 0.5), "seed": (0, MAX_SEED),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise SettingError(f"{name} must be in {low:g}..{high:g}, got {getattr(self, name)}")
        if self.target not in TARGETS:
            raise SettingError(f"target must be {' or '.join(TARGETS)}, got {self.target!r}")


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


def train(
    data: str | Path,
    cache: str | Path,
    out: str | Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    anyway: bool = False,
    device: str = "auto",
    workers: int | None = None,
    scan: ScanOptions = ScanOptions(),
) -> TrainResult:
    """Train a student, or with `resume` go on with the run in `out`.

    WeakTeacher stops a new run with a teacher that nobody should learn from, unless `anyway`.
    Raises DataError, CacheError, OverBudget, OutputExists or another PipelineError before the first step.
    On one machine, device and thread count a resumed run ends with the numbers of an undisturbed one.
    """
    check_output_folder(out)
    run = RunFolder(out)
    if run.exists() and not resume:
        go_on = "go on with it by --resume, or " if run.last.exists() else ""
        raise OutputExists(f"{out} is not empty: {go_on}choose another -o")
    previous = run.load_last() if resume else None
    # Read, not mapped: somebody may copy another file over the cache while this runs for hours.
    reader = CacheReader(cache, memory_map=False)
    images = scan_folder(data, scan)
    training = _Training(run, reader, images, config, resolve_device(device), workers, scan.skip_bad_images)
    report = training.announce()
    if config.teacher and previous is None and not anyway:
        check_teacher(report, reader, cache, data)
    if previous is not None:
        training.restore(previous)
    return training.run_epochs()


class _Training:
    """The state of one run in this process."""

    def __init__(
        self, run: RunFolder, reader: CacheReader, images: SampleSet, config: TrainConfig, device: str,
        workers: int | None, skip_bad_images: bool,
    ) -> None:  # fmt: skip
        self._run, self._config, self._device = run, config, device
        learners, validators, where = split_off_validation(images, config.val_fraction, config.seed)
        targets = join(
            reader, {"train": learners, "val": validators}, str(images.root),
            clean=["val"], skip_bad_images=skip_bad_images,
        )  # fmt: skip
        check_left(targets, images)
        self._learn, self._val = targets["train"], targets["val"]
        self._learn.verify()
        classes = reader.tasks[FOLDER_TASK]
        self._student = prepare_student(
            config.student, classes, config.student_size_px, seed=derived_seed(config.seed, "weights")
        )
        self._card = StudentCard(
            student=self._student.source.name, task=FOLDER_TASK, classes=classes,
            size_px=config.student_size_px, geometry=self._learn.geometry, cache_id=reader.cache_id,
            taught=config.teacher, teacher=str(reader.manifest.provenance.get("teacher", "")),
        )  # fmt: skip
        model = self._student.module
        artefact_bytes = check_budget(model, self._card, config.budget_mb)
        self._learn.check_witness(config.student_size_px, config.seed)
        self._layout = memory_format(device, model)
        self._model = model.to(device=device, memory_format=self._layout)  # type: ignore[call-overload]
        self._average = MovingAverage(self._model, config.ema_decay)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=config.lr_peak, weight_decay=config.weight_decay, fused=device != "mps"
        )
        n_workers = default_workers(device) if workers is None else workers
        self._load = StudentLoader(config.student_size_px, self._learn.geometry, n_workers)
        self._val_pixels: Tensor | None = None
        self._ids = {
            "recipe_id": reader.recipe_id, "cache_id": reader.cache_id, "seal": reader.seal.hex(),
            "images": _key_digest(self._learn.samples, self._val.samples), **self._student.ids,
        }  # fmt: skip
        keys = bytearray(b"".join(sample.key for sample in self._learn.samples))
        self._learned_keys = torch.frombuffer(keys, dtype=torch.uint8).view(-1, 16)
        self._epoch, self._metrics = 0, list[dict[str, Any]]()
        self._best = {"epoch": 0, "macro_f1": -1.0}
        self._artefact_bytes, self._val_source = artefact_bytes, where

    def announce(self) -> TeacherReport:
        """Say what is trained on what; what the teacher is worth is also returned."""
        config = self._config
        n_parameters = sum(p.numel() for p in self._model.parameters())
        log.info(
            "student  %s at %d px: %.2f M parameters, %.1f MB exported (budget %g MB); %s, %d threads",
            config.student, config.student_size_px, n_parameters / 1e6, self._artefact_bytes / MB, config.budget_mb,
            self._device, torch.get_num_threads(),
        )  # fmt: skip
        log.info(
            "images   %s train, %s val (%s); %.3g cached views each, %d classes",
            f"{len(self._learn.samples):,}", f"{len(self._val.samples):,}", self._val_source,
            self._learn.n_views_N.mean(), len(self._card.classes),
        )  # fmt: skip
        report = teacher_report(self._val, "val", self._learn)
        for line in short_lines(report, config.temperature if config.teacher else None):
            log.info("teacher  %s", printable(line))
        return report

    def restore(self, previous: dict[str, Any]) -> None:
        """Take up a checkpoint; RunError lists every setting or input that is not the run's own."""
        saved = asdict(TrainConfig()) | previous["config"]  # a run of an older version has no newer settings
        differing = [
            f"{name}: the run has {saved[name]!r}, this call {value!r}"
            for name, value in asdict(self._config).items()
            if saved[name] != value
        ]
        differing += [
            f"{what} since: restore it, or start a new run with another -o" for name, what in _CHANGED.items()
            if previous["ids"][name] != self._ids[name]
        ]  # fmt: skip
        if differing:
            raise RunError(f"{self._run.path} cannot go on with other settings:\n  " + "\n  ".join(differing))
        if previous["threads"] != torch.get_num_threads():
            log.info("the run had %d threads: its last digits may differ", previous["threads"])
        self._student.check_resumes(previous)
        self._model.load_state_dict(previous["model"])
        self._average.model.load_state_dict(previous["ema"])
        self._optimizer.load_state_dict(previous["optimizer"])
        for group in self._optimizer.param_groups:
            group["fused"] = self._device != "mps"  # the saved flag is that of the machine it ran on
        self._epoch, self._metrics, self._best = previous["epoch"], previous["metrics"], previous["best"]
        self._run.follow(previous, self._card)
        log.info("resumed  after epoch %d of %d", self._epoch, self._config.epochs)

    def run_epochs(self) -> TrainResult:
        """All epochs that are left."""
        started = time.perf_counter()
        with deferred_interrupts() as self._check_interrupt:
            if not self._metrics:
                self._save()  # an interrupt in the first epoch has something to resume from
            while self._epoch < self._config.epochs:
                row = self._one_epoch(self._epoch)
                self._epoch += 1
                self._metrics.append(row)
                if is_best := row["val_macro_f1"] > self._best["macro_f1"]:
                    self._best = {"epoch": self._epoch, "macro_f1": row["val_macro_f1"]}
                self._save()
                log.info("%s%s", _epoch_line(row, self._config.epochs), "  *" if is_best else "")
        wall_s = time.perf_counter() - started
        return TrainResult(self._run.path, int(self._best["epoch"]), self._best["macro_f1"], wall_s)

    def _one_epoch(self, epoch: int) -> dict[str, Any]:
        started = time.perf_counter()
        torch.manual_seed(derived_seed(self._config.seed, epoch, "dropout"))
        rows_N = self._learn.epoch_rows(epoch, self._config.seed)
        batches = self._epoch_batches(epoch, rows_N)
        parts_sum = np.zeros(3)
        self._model.train()
        loaded = self._load(batches)
        for number, (pixels, index_B) in enumerate(_progress(loaded, len(batches), epoch)):
            if number == 0:
                self._learn.check_pixels(pixels, index_B.numpy(), rows_N[index_B.numpy()])
            step = epoch * len(batches) + number
            parts = self._step(pixels, index_B, rows_N, step, len(batches) * self._config.epochs)
            parts_sum += np.array([part.item() for part in parts]) * len(index_B)
            self._check_interrupt()
        trained_s = time.perf_counter() - started
        if not np.isfinite(parts_sum).all():
            raise RunError(
                f"the loss is not finite in epoch {epoch + 1}; {self._run.last} holds the state before it. "
                f"The usual cause is a learning rate that is too high (now {self._config.lr_peak:g}): lower --lr"
            )
        loss, hard, soft = (parts_sum / len(rows_N)).tolist()
        val = self._validate()
        return {
            "epoch": epoch + 1, "lr": self._optimizer.param_groups[0]["lr"],
            "loss": loss, "loss_hard": hard, "loss_soft": soft,
            "val_accuracy": val.accuracy, "val_balanced_accuracy": val.balanced_accuracy, "val_macro_f1": val.macro_f1,
            "images_per_s": len(rows_N) / trained_s, "wall_s": time.perf_counter() - started,
        }  # fmt: skip

    def _epoch_batches(self, epoch: int, rows_N: NDArray[np.int64]) -> list[list[ViewItem]]:
        """Every image once, in random order, in batches of nearly equal size (a batch of one breaks batch norm)."""
        items = self._learn.items(rows_N)
        order = np.random.default_rng(derived_seed(self._config.seed, epoch, "order")).permutation(len(items))
        n_batches = min(-(-len(items) // self._config.batch_size), len(items) // 2)
        return [[items[i] for i in part] for part in np.array_split(order, n_batches)]

    def _step(
        self, pixels: Tensor, index_B: Tensor, rows_N: NDArray[np.int64], step: int, total_steps: int
    ) -> LossParts:
        config = self._config
        index = index_B.numpy()
        labels = torch.from_numpy(self._learn.labels_N[index]).to(self._device)
        told = None
        if config.teacher:
            teacher_logits = self._learn.mean_logits if config.target == "mean" else self._learn.teacher_logits
            told = torch.from_numpy(teacher_logits(rows_N[index])).to(self._device)
        student = self._model(normalise(pixels, self._card, self._device, self._layout))
        parts = distillation_loss(student, told, labels, temperature=config.temperature, alpha=config.alpha)
        self._optimizer.zero_grad(set_to_none=True)
        parts.total.backward()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, total_steps, config.lr_peak)
        self._optimizer.step()
        self._average.update(self._model, step)
        return LossParts(*(part.detach() for part in parts))

    def _validate(self) -> Metrics:
        model = self._average.model
        with torch.inference_mode():
            logits = [
                model(normalise(pixels, self._card, self._device)).float().cpu() for pixels in self._clean_batches()
            ]
        return classification_metrics(torch.cat(logits).numpy(), self._val.labels_N, self._card.classes)

    def _clean_batches(self) -> Iterator[Tensor]:
        """The clean validation views, uint8; kept in memory after the first time where they are under a gigabyte."""
        if self._val_pixels is not None:
            yield from self._val_pixels.split(128)
            return
        rows = self._val.clean_rows()
        items = self._val.items(rows)
        batches = [items[start : start + 128] for start in range(0, len(items), 128)]
        kept: list[Tensor] | None = [] if len(items) * 3 * self._card.size_px**2 < 1_000_000_000 else None
        for pixels, index_B in self._load(batches):
            self._val.check_pixels(pixels[:_N_CHECKED], index_B[:_N_CHECKED].numpy(), rows[index_B[:_N_CHECKED]])
            if kept is not None:
                kept.append(pixels)
            yield pixels
            self._check_interrupt()
        if kept is not None:
            self._val_pixels = torch.cat(kept)

    def _save(self) -> None:
        checkpoint = {
            "format": CHECKPOINT_FORMAT, "epoch": self._epoch, "best": self._best, "metrics": self._metrics,
            "config": {**asdict(self._config), "cache": str(Path(self._learn.reader.path).absolute())},
            "ids": self._ids, "threads": torch.get_num_threads(),
            "model": self._model.state_dict(), "ema": self._average.model.state_dict(),
            "optimizer": self._optimizer.state_dict(), "learned_keys": self._learned_keys,
        }  # fmt: skip
        if self._student.architecture is not None:
            checkpoint["architecture"] = self._student.architecture
        self._run.save(checkpoint, self._card)


_CHANGED = {"seal": "the cache was extended or rebuilt", "images": "images were added, removed or relabelled"}


def saved_config(run: str | Path) -> TrainConfig:
    """The settings of an interrupted run; RunError where there is none."""
    saved = RunFolder(run).load_last()["config"]
    return TrainConfig(**{field.name: saved[field.name] for field in fields(TrainConfig) if field.name in saved})


def _key_digest(*groups: Sequence[Sample]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for group in groups:
        digest.update(len(group).to_bytes(8, "little"))
        for sample in group:
            digest.update(sample.key + sample.labels[FOLDER_TASK].encode())
    return digest.hexdigest()


def _progress(batches: Iterator[tuple[Tensor, Tensor]], total: int, epoch: int) -> Any:
    return tqdm(batches, total=total, desc=f"epoch {epoch + 1}", unit="batch", leave=False, disable=None)


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:>3}/{epochs}  loss_hard {row['loss_hard']:.3f}  loss_soft {row['loss_soft']:.3f}  "
        f"val accuracy {row['val_accuracy']:.3f}  balanced {row['val_balanced_accuracy']:.3f}  "
        f"macro F1 {row['val_macro_f1']:.3f}  {row['images_per_s']:.0f} images/s"
    )
