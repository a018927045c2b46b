"""Fit a teacher: fine-tune a dual encoder on the train split, against the texts of its classes.

Never runs over the test split, never writes a cache. Views are drawn and rendered as in both stages; every epoch is
validated and saved, the best one becomes an ordinary model folder for `cache build --teacher`.
Run: softlabel teacher fit DATA --from MODEL -o DIR
N samples, B batch, C classes, D embedding, S pixels.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data.loaders import StudentLoader, default_workers
from data.options import ScanOptions
from data.scan import scan_data
from pipeline.errors import RunError, SettingError
from pipeline.fit.folder import CHECKPOINT_FORMAT, FitFolder, fitted_on
from pipeline.fit.images import POLICY, FitImages, choose_images
from pipeline.fit.steps import Steps, out_of_memory
from pipeline.fit.tuning import PRECISIONS, DualEncoderTuning, resolve_fit_precision
from pipeline.metrics import classification_metrics
from pipeline.outputs import check_output_folder
from pipeline.process import MAX_SEED, deferred_interrupts, derived_seed, resolve_device
from pipeline.tasks import UNLABELLED, Tasks
from pipeline.teachers.prompts import Prompts, PromptSource

log = logging.getLogger(__name__)

_KEPT_PIXELS_BYTES = 1_000_000_000
"""Validation views stay in memory where they are under this."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Everything that a fit's weights depend on, apart from images, prompts, start weights, device and threads."""

    epochs: int = 10
    """Passes over the train images; each shows another view of every image."""
    batch_size: int = 32
    """Images in a step."""
    lr_peak: float = 1e-5
    """Learning rate after warm-up; it then falls to 0 along a cosine. For a trained model; from scratch 1e-3."""
    weight_decay: float = 0.05
    """Of matrices; biases, norms, scale and bias of the logits have none."""
    seed: int = 0
    precision: str = "auto"
    """`auto` is bf16 on CUDA that computes in it, else fp16 there, and fp32 elsewhere; weights stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    freeze_text: bool = True
    """Leave the text tower as it is."""
    last_layers: int | None = None
    """Only the last N blocks of the image tower learn, and what is above them; None is the whole tower."""
    val_fraction: float = 0.15
    """Share of train that validates where the data has no val split; test is never used."""

    def __post_init__(self) -> None:
        ranges = {
            "epochs": (1, 65_534), "batch_size": (1, 1_000_000), "lr_peak": (1e-9, 10), "weight_decay": (0, 10),
            "seed": (0, MAX_SEED), "val_fraction": (0.01, 0.5),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise SettingError(f"{name} must be in {low:g}..{high:g}, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise SettingError(f"precision must be one of {', '.join(PRECISIONS)}, got '{self.precision}'")


@dataclass(frozen=True)
class FitResult:
    """A finished fit."""

    path: Path
    best_epoch: int
    """1 for the first."""
    best_macro_f1: float
    """On the validation images, in [0, 1]."""
    start_macro_f1: float
    """The same of the model that it started from."""
    wall_s: float
    """Seconds of all epochs of this call."""


def fit_teacher(
    data: str | Path,
    source: str | Path,
    out: str | Path,
    config: FitConfig,
    *,
    prompts: PromptSource | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int | None = None,
    scan: ScanOptions = ScanOptions(),
) -> FitResult:
    """Fit the model `source` to the train split of `data`, or with `resume` go on with the fit in `out`.

    Raises DataError, TeacherError, OutputExists or another PipelineError before the first step. On one machine,
    device and thread count a resumed fit ends with the weights of an undisturbed one.
    """
    check_output_folder(out)
    folder = FitFolder(out)
    if not resume:
        folder.check_new()
    elif folder.is_finished():
        return _finished(folder, config)
    previous = folder.load_last() if resume else None
    images = scan_data(data, scan)
    texts = _prompts(Tasks(images.classes), prompts, previous)
    used = choose_images(
        images, val_fraction=config.val_fraction, seed=config.seed, skip_bad_images=scan.skip_bad_images
    )
    fitting = _Fitting(folder, str(source), used, texts, config, resolve_device(device), workers)
    if previous is not None:
        fitting.restore(previous)
    with deferred_interrupts() as check_interrupt:
        return fitting.run_epochs(check_interrupt)


def saved_config(out: str | Path) -> FitConfig:
    """The settings of the fit in a folder; RunError where there is none."""
    folder = FitFolder(out)
    told = folder.finished_config() if folder.is_finished() else folder.load_last(memory_map=True)
    names = [field.name for field in fields(FitConfig)]
    return FitConfig(**{name: told["config"][name] for name in names if name in told["config"]})


def _finished(folder: FitFolder, config: FitConfig) -> FitResult:
    """What a finished fit came to: resuming it again changes nothing."""
    told = folder.finished_config()
    _check_same(folder, _differing_settings(told["config"], config))
    folder.tidy()
    log.info("finished already; `--teacher %s` uses it", folder.path)
    best = told["best"]
    return FitResult(folder.path, best["epoch"], best["macro_f1"], told["start"]["macro_f1"], 0.0)


def _prompts(tasks: Tasks, source: PromptSource | None, previous: dict[str, Any] | None) -> Prompts:
    """Those that are asked for, else those of the fit to go on with, else of the class names."""
    if previous is not None and not (source and source.is_given):
        prompts: Prompts = {name: tuple(texts) for name, texts in previous["prompts"].items()}
    else:
        prompts = (source or PromptSource()).texts_of(tasks)
    for name, texts in prompts.items():
        log.info("prompt  %s: %s", name, " | ".join(texts))
    return prompts


def _differing_settings(saved: dict[str, Any], config: FitConfig) -> list[str]:
    return [
        f"{name}: the fit has {saved.get(name)!r}, this call {value!r}"
        for name, value in asdict(config).items()
        if saved.get(name) != value
    ]


def _check_same(folder: FitFolder, differing: list[str]) -> None:
    if differing:
        raise RunError(f"{folder.path} cannot go on with other settings:\n  " + "\n  ".join(differing))


class _Fitting:
    """The state of one fit in this process."""

    def __init__(
        self, folder: FitFolder, source: str, images: FitImages, prompts: Prompts, config: FitConfig, device: str,
        workers: int | None,
    ) -> None:  # fmt: skip
        self._folder, self._images, self._prompts, self._config = folder, images, prompts, config
        self._fitted_before = fitted_on(source) or frozenset()
        self._model = DualEncoderTuning(
            source, prompts, device=device, precision=resolve_fit_precision(config.precision, device),
            freeze_text=config.freeze_text, last_layers=config.last_layers,
            gradient_checkpointing=config.gradient_checkpointing,
        )  # fmt: skip
        learning_bytes = _n_bytes(self._model.learning.values())
        model_bytes = _n_bytes(self._model.model.parameters())
        folder.check_room(learning_bytes, model_bytes)
        self._steps = Steps(
            self._model, images.tasks, lr_peak=config.lr_peak, weight_decay=config.weight_decay,
            total_steps=images.n_batches(config.batch_size) * config.epochs,
        )  # fmt: skip
        n_workers = default_workers(device) if workers is None else workers
        self._load = StudentLoader(self._model.size_px, POLICY.geometry, n_workers)
        self._val_pixels: Tensor | None = None
        self._labels_NT = torch.from_numpy(images.labels(images.learn))
        self._ids = {"weights_sha256": self._model.weights_sha256, "images": images.digest()}
        self._run_on = {"device": device, "precision": self._model.precision, "threads": torch.get_num_threads()}
        self._epoch, self._metrics = 0, list[dict[str, Any]]()
        self._best, self._start = {"epoch": 0, "macro_f1": -1.0}, dict[str, float]()
        self._check_interrupt: Callable[[], None] = lambda: None
        self._announce(source, learning_bytes, model_bytes)

    def _announce(self, source: str, learning_bytes: int, model_bytes: int) -> None:
        images, model = self._images, self._model
        log.info(
            "start   %s: %.1f M of %.1f M weights learn (text tower %s, %s of %d image blocks); %d px, %s on %s",
            source, learning_bytes / 4e6, model_bytes / 4e6, "frozen" if self._config.freeze_text else "learns",
            "all" if self._config.last_layers is None else self._config.last_layers, model.n_blocks,
            model.size_px, model.precision, model.device,
        )  # fmt: skip
        log.info(
            "images  %s train, %s val (%s), %d classes",
            f"{len(images.learn):,}", f"{len(images.val):,}", images.val_source, len(images.tasks.outputs),
        )  # fmt: skip
        if known := sum(sample.key in self._fitted_before for sample in images.val):
            log.warning(
                "%s of the validation images are among those that %s was fitted on: their scores will be too good",
                f"{known:,}", source,
            )  # fmt: skip

    def restore(self, previous: dict[str, Any]) -> None:
        """Take up a checkpoint; RunError lists every setting or input that is not the fit's own."""
        differing = _differing_settings(previous["config"], self._config)
        texts = {name: list(texts) for name, texts in self._prompts.items()}
        differing += [
            f"prompt of '{name}': the fit has {previous['prompts'].get(name)!r}, this call {texts.get(name)!r}"
            for name in sorted(texts.keys() | previous["prompts"].keys())
            if previous["prompts"].get(name) != texts.get(name)
        ]
        differing += [what for name, what in _CHANGED.items() if previous["ids"][name] != self._ids[name]]
        _check_same(self._folder, differing)
        if previous["run_on"] != self._run_on:
            before, now = (", ".join(f"{k} {v}" for k, v in on.items()) for on in (previous["run_on"], self._run_on))
            log.info("the fit began elsewhere (%s; now %s): its last digits may differ", before, now)
        self._model.take(previous["weights"])
        self._steps.take(previous["steps"])
        self._epoch, self._metrics = previous["epoch"], previous["metrics"]
        self._best, self._start = previous["best"], previous["start"]
        self._folder.drop_leftovers()
        self._folder.follow(previous)
        log.info("resumed after epoch %d of %d", self._epoch, self._config.epochs)

    def run_epochs(self, check_interrupt: Callable[[], None]) -> FitResult:
        """All epochs that are left, then the finished folder."""
        self._check_interrupt = check_interrupt
        started = time.perf_counter()
        with out_of_memory(self._model, self._config.batch_size, self._config.gradient_checkpointing):
            self._learn()
        wall_s = time.perf_counter() - started
        best = FitResult(
            self._folder.path, int(self._best["epoch"]), self._best["macro_f1"], self._start["macro_f1"], wall_s
        )
        if best.best_macro_f1 < best.start_macro_f1:
            log.warning("no epoch is as good on the validation images as the start: another --lr, or more images?")
        self._model.take(self._folder.load_best())
        keys = {sample.key for sample in self._images.learn}
        self._folder.publish(self._model.save, keys | self._fitted_before)
        return best

    def _learn(self) -> None:
        if not self._start:
            before = self._validate()
            self._start = {name: before[name] for name in ("accuracy", "macro_f1")}
            log.info(
                "before  val accuracy %.3f, macro F1 %.3f; always the largest class: %.3f",
                before["accuracy"], before["macro_f1"], before["majority_share"],
            )  # fmt: skip
        while self._epoch < self._config.epochs:
            row = self._one_epoch(self._epoch)
            self._epoch += 1
            self._metrics.append(row)
            if is_best := row["val_macro_f1"] >= self._best["macro_f1"]:
                self._best = {"epoch": self._epoch, "macro_f1": row["val_macro_f1"]}
            self._folder.save(self._checkpoint())
            log.info("%s%s", _epoch_line(row, self._config.epochs), "  *" if is_best else "")

    def _one_epoch(self, epoch: int) -> dict[str, Any]:
        started = time.perf_counter()
        torch.manual_seed(derived_seed(self._config.seed, epoch, "dropout"))
        batches = self._images.epoch_batches(epoch, self._config.batch_size, self._config.seed)
        self._model.train()
        loss_sum = 0.0
        loaded = tqdm(
            self._load(batches), total=len(batches), desc=f"epoch {epoch + 1}", unit="batch", leave=False, disable=None
        )
        for number, (pixels, sample_B) in enumerate(loaded):
            labels_BT = self._labels_NT[sample_B]
            loss_sum += self._steps(pixels, labels_BT, epoch * len(batches) + number) * len(labels_BT)
            self._check_interrupt()
        trained_s = time.perf_counter() - started
        val = self._validate()
        n_images = len(self._images.learn)
        return {
            "epoch": epoch + 1, "lr": self._steps.lr, "loss": loss_sum / n_images,
            **{f"val_{name}": val[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")},
            "images_per_s": n_images / trained_s, "wall_s": time.perf_counter() - started,
        }  # fmt: skip

    def _validate(self) -> dict[str, float]:
        """Scores of the validation images, means over the tasks."""
        self._model.train(False)
        with torch.inference_mode():
            text_CD = self._model.class_texts()
            logits = [self._model.logits(pixels, text_CD).cpu() for pixels in self._val_batches()]
        said_NK, labels_NT = torch.cat(logits).numpy(), self._images.labels(self._images.val)
        scores = []
        for number, (task, columns) in enumerate(self._images.tasks.columns.items()):
            labelled = labels_NT[:, number] != UNLABELLED
            classes = self._images.tasks[task]
            scores.append(classification_metrics(said_NK[labelled, columns], labels_NT[labelled, number], classes))
        names = ("accuracy", "balanced_accuracy", "macro_f1", "majority_share")
        return {name: statistics.fmean(getattr(one, name) for one in scores) for name in names}

    def _val_batches(self) -> Iterator[Tensor]:
        """The clean validation views, uint8."""
        # No gradients are kept: four times the images of a step need less memory than the step.
        size = 4 * self._config.batch_size
        if self._val_pixels is not None:
            yield from self._val_pixels.split(size)
            return
        keep = len(self._images.val) * 3 * self._model.size_px**2 < _KEPT_PIXELS_BYTES
        kept: list[Tensor] = []
        for pixels, _ in self._load(self._images.val_batches(size)):
            if keep:
                kept.append(pixels)
            yield pixels
            self._check_interrupt()
        if keep:
            self._val_pixels = torch.cat(kept)

    def _checkpoint(self) -> dict[str, Any]:
        return {
            "format": CHECKPOINT_FORMAT, "epoch": self._epoch, "best": self._best, "start": self._start,
            "metrics": self._metrics, "config": asdict(self._config),
            "prompts": {name: list(texts) for name, texts in self._prompts.items()},
            "ids": self._ids, "run_on": self._run_on, "weights": self._model.weights(),
            "steps": self._steps.state(),
        }  # fmt: skip


def _n_bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


_CHANGED = {
    "weights_sha256": "the weights of --from are others: restore them, or start a new fit with another -o",
    "images": "images were added, removed or relabelled since: restore them, or start a new fit with another -o",
}


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:>3}/{epochs}  loss {row['loss']:.3f}  val accuracy {row['val_accuracy']:.3f}  "
        f"balanced {row['val_balanced_accuracy']:.3f}  macro F1 {row['val_macro_f1']:.3f}  "
        f"{row['images_per_s']:.0f} images/s"
    )
