"""The settings of a training run: every number that its results depend on, with its range.

Never reads files or flags (`pipeline.training.config_file` and the command do).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import SettingError, did_you_mean
from pipeline.process import MAX_SEED
from pipeline.students.names import DEFAULT_STUDENT

CHOICES = {
    "target": ("view", "mean"),
    "optimizer": ("adamw", "sgd"),
    "sampler": ("shuffle", "balanced"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "soft_loss": ("kl", "cross-entropy"),
}
"""Setting -> the words that it takes, the default first."""
FLAGS = {"lr_peak": "--lr", "n_views": "--views", "student_size_px": "--student-size"}
"""Setting -> its flag, where that has another name."""
_RANGES: dict[str, tuple[float, float]] = {
    "student_size_px": (8, 4096), "dropout": (0, 0.99), "epochs": (1, 1_000_000), "early_stopping": (0, 1_000_000),
    "n_views": (0, 65_535), "label_fraction": (1e-6, 1), "batch_size": (0, 1_000_000),
    "temperature": (1e-3, 1e3), "temperature_end": (0, 1e3), "alpha": (0, 1), "label_smoothing": (0, 0.99),
    "logit_adjustment": (0, 10), "lr_peak": (1e-9, 10), "warmup_fraction": (0, 1), "momentum": (0, 0.9999),
    "weight_decay": (0, 10), "clip_norm": (0, 1e6), "ema_decay": (0, 0.999999), "budget_mb": (0.001, 1e6),
    "val_fraction": (0.01, 0.5), "seed": (0, MAX_SEED),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that a run's numbers depend on, apart from images, cache, device and thread count."""

    student: str = DEFAULT_STUDENT
    """A classifier of torchvision or timm by its name there, or `my_model.py:build`."""
    student_size_px: int = 224
    """Side of the square that the student sees."""
    init: str = "none"
    """First weights: `imagenet`, a run folder, a file of weights, or `none` for random ones."""
    dropout: float | None = None
    """Probability of dropping an input of the last linear layer, in [0, 1); None leaves the model its own."""
    epochs: int = 40
    """Passes over the train images; each shows another view of every image."""
    early_stopping: int = 0
    """Stop after this many epochs without a better macro F1 on the validation images; 0 never stops early."""
    best_by: str = "mean"
    """Task whose macro F1 on the validation images chooses the best epoch; `mean` is that of all tasks."""
    n_views: int = 0
    """Use the first so many cached views of an image only; 0 uses all."""
    fresh_views: bool = False
    """Hard labels on views that are drawn anew every epoch, the same way as the cache's. Needs `teacher` off."""
    label_fraction: float = 1.0
    """Share of the train images, drawn by class, whose labels are used; of the others the teacher's answers alone."""
    batch_size: int = 0
    """Images in a training step; 0 chooses by how many the run shows in all (`pipeline.training.batches`)."""
    sampler: str = "shuffle"
    """`shuffle` shows every image once an epoch; `balanced` draws as many, each class equally often."""
    teacher: bool = True
    """False: hard labels only, on the same views; the baseline of a distilled run."""
    target: str = "view"
    """Soft target of a view: the teacher's answer to it, or with "mean" the mean of its answers to all the views."""
    soft_loss: str = "kl"
    """`kl` or `cross-entropy` of teacher and student: equal gradients, values that differ by the teacher's entropy."""
    temperature: float = 4.0
    """T of the soft loss; unitless, > 0."""
    temperature_end: float = 0.0
    """T at the last step, reached from `temperature` along a straight line; 0 keeps it constant."""
    alpha: float = 0.3
    """Weight of the hard loss, in [0, 1]; the soft loss has the rest."""
    class_weights: str = "none"
    """Weights of the hard loss: `none`, `auto` (inverse class frequency), or a YAML file, class: weight."""
    label_smoothing: float = 0.0
    """Share of the hard label that is spread over all classes, in [0, 1)."""
    logit_adjustment: float = 0.0
    """tau: the hard loss sees logits + tau * log(class share of train) (Menon et al. 2021); 0 leaves them alone."""
    optimizer: str = "adamw"
    """`adamw`, or `sgd` with Nesterov momentum."""
    lr_peak: float = 1e-3
    """Learning rate after warm-up; it then falls to 0 along a cosine."""
    warmup_fraction: float = 0.05
    """Share of all steps in which the learning rate rises."""
    momentum: float = 0.9
    """Of `sgd`."""
    weight_decay: float = 0.05
    """Of matrices and kernels; biases and the weights of norms do not decay."""
    clip_norm: float = 0.0
    """Largest norm of the gradient of all weights together; 0 does not clip."""
    ema_decay: float = 0.999
    """Decay of the moving average of weights, which is what is validated, kept and exported; 0 keeps no average."""
    precision: str = "auto"
    """`auto` is fp32, but on CUDA bf16 where the device has it and else fp16."""
    budget_mb: float = 25.0
    """Largest exported file, in megabytes of 1e6 bytes."""
    val_fraction: float = 0.15
    """Share of train that validates where the data has no val split; test is never used."""
    seed: int = 0

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for field in dataclasses.fields(self):
            if given[field.name] is not None or field.default is not None:
                _check_type(field.name, given[field.name], float if field.default is None else type(field.default))
        for name, (low, high) in _RANGES.items():
            if (value := given[name]) is None or low <= value <= high:
                continue
            flag = f" ({FLAGS[name]})" if name in FLAGS else ""
            meant = f"; did you mean {value / 100:g}?" if high <= 1 < value <= 100 else ""
            raise SettingError(f"{name}{flag} must be in {low:g}..{high:g}, got {value}{meant}")
        if self.batch_size == 1:
            raise SettingError("batch_size must be at least 2, or 0 to choose it, got 1: batch norm needs two images")
        for name, words in CHOICES.items():
            if (value := getattr(self, name)) not in words:
                raise SettingError(f"{name} must be {' or '.join(words)}, got {value!r}{did_you_mean(value, words)}")
        if self.fresh_views and self.teacher:
            raise SettingError(
                "fresh_views needs hard labels alone: the teacher has answered the cached views and no others; "
                "pass --no-teacher as well"
            )
        if self.fresh_views and self.n_views:
            raise SettingError("fresh_views takes no cached view, n_views says how many: set one of them")


def other_settings(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """The settings of a run, as `config.json` has them, that `config` has otherwise, for people."""
    run = dataclasses.asdict(TrainConfig()) | dict(saved)  # a run of an older version has no newer settings
    if not config.batch_size:  # whoever leaves the choice to the run takes what it chose
        config = dataclasses.replace(config, batch_size=run["batch_size"])
    return [
        f"{name}{f' ({FLAGS[name]})' if name in FLAGS else ''}: the run has {run[name]!r}, this call {value!r}"
        for name, value in dataclasses.asdict(config).items() if run[name] != value
    ]  # fmt: skip


def _check_type(name: str, value: Any, kind: type) -> None:
    """A whole number will do for a float; a truth value is no number."""
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not fits:
        word = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        raise SettingError(f"{name} must be {word}, got {value!r}")
