"""A student that learns: one optimizer step at a time, with its moving average, in the precision of the run.

Knows no cache, no images on disk and no epochs. B batch, C classes, S pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.losses.distillation import UNLABELLED, LossParts, distillation_loss
from pipeline.training.config import TrainConfig
from pipeline.training.optimisation import (
    MovingAverage,
    is_fused,
    learning_rate,
    make_optimizer,
    temperature_at,
)  # fmt: skip
from pipeline.training.precision import autocast, loss_scaler, resolve_precision


@dataclass(frozen=True)
class Step:
    """What one step came to, on the views as they were shown."""

    loss: float
    hard: float
    """Mean over the labelled images, in nats; so is the soft part over all."""
    soft: float
    n_images: int
    n_labelled: int
    n_right: int
    """Of the labelled ones."""
    n_agreed: int
    """Images on which the student's first class is that of its soft target."""


class Tally:
    """The sums of an epoch's steps."""

    def __init__(self) -> None:
        self.n_images = 0
        self._sums = dict.fromkeys(("loss", "hard", "soft", "labelled", "right", "agreed"), 0.0)

    def add(self, step: Step) -> None:
        """One more step."""
        self.n_images += step.n_images
        for name, value in {
            "loss": step.loss * step.n_images, "hard": step.hard * step.n_labelled, "soft": step.soft * step.n_images,
            "labelled": step.n_labelled, "right": step.n_right, "agreed": step.n_agreed,
        }.items():  # fmt: skip
            self._sums[name] += value

    def means(self, taught: bool) -> dict[str, float | None]:
        """The columns of metrics.csv: hard loss and accuracy over labelled images, the others over all."""
        sums, labelled = self._sums, max(1.0, self._sums["labelled"])
        return {
            "loss": sums["loss"] / self.n_images, "loss_hard": sums["hard"] / labelled,
            "loss_soft": sums["soft"] / self.n_images, "train_accuracy": sums["right"] / labelled,
            "train_agreement": sums["agreed"] / self.n_images if taught else None,
        }  # fmt: skip


class Learner:
    """A model and all that changes with it."""

    def __init__(
        self, model: nn.Module, config: TrainConfig, device: str, *, class_weights_C: Tensor | None = None,
        logit_offsets_C: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.model, self._config, self._device = model, config, device
        self.precision = resolve_precision(config.precision, device)
        self._average = MovingAverage(model, config.ema_decay)
        self._fused = is_fused(config.optimizer, device, self.precision)
        self._optimizer = make_optimizer(model, config, fused=self._fused)
        self._scaler = loss_scaler(self.precision, device)
        self._hard_options = {
            "class_weights_C": class_weights_C, "logit_offsets_C": logit_offsets_C,
            "label_smoothing": config.label_smoothing,
        }  # fmt: skip

    @property
    def average(self) -> nn.Module:
        """The moving average of the weights, in evaluation mode."""
        return self._average.model

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self, inputs: Tensor, teacher_BC: Tensor | None, labels_B: Tensor, step: int, total_steps: int) -> Step:
        """Learn from one batch: normalised float32 [B, 3, S, S], raw logits [B, C] or None, int64 [B].

        Where the loss comes out infinite or undefined the weights are left as they are.
        """
        config = self._config
        temperature = temperature_at(step, total_steps, config.temperature, config.temperature_end)
        with autocast(self.precision, self._device):
            student_BC = self.model(inputs)
        student_BC = student_BC.float()
        parts = distillation_loss(
            student_BC, teacher_BC, labels_B, temperature=temperature, alpha=config.alpha,
            soft_form=config.soft_loss, **self._hard_options,
        )  # fmt: skip
        found = _tally(parts, student_BC.detach(), teacher_BC, labels_B)
        if math.isfinite(found.loss):
            self._descend(parts.total, learning_rate(step, total_steps, config.lr_peak, config.warmup_fraction))
            self._average.update(self.model, step)
        return found

    def _descend(self, loss: Tensor, lr: float) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        if self._config.clip_norm:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on; tensors and plain values."""
        return {
            "model": self.model.state_dict(), "ema": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict(),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        if scaler := state.get("scaler"):  # empty of a run that began on a device of another precision
            self._scaler.load_state_dict(scaler)
        for group in self._optimizer.param_groups:
            group["fused"] = self._fused  # the saved flag is that of the machine it ran on

    def is_finite(self) -> bool:
        """Whether every weight and every statistic of a norm is a number; other buffers may hold infinities."""
        statistics = (
            buffer for name, buffer in self.model.named_buffers()
            if name.rpartition(".")[2] in ("running_mean", "running_var")
        )  # fmt: skip
        return all(bool(torch.isfinite(numbers).all()) for numbers in (*self.model.parameters(), *statistics))


def _tally(parts: LossParts, student_BC: Tensor, teacher_BC: Tensor | None, labels_B: Tensor) -> Step:
    first_B = student_BC.argmax(dim=1)
    labelled_B = labels_B != UNLABELLED
    agreed = first_B.new_zeros(()) if teacher_BC is None else (first_B == teacher_BC.argmax(dim=1)).sum()
    counts = torch.stack([labelled_B.sum(), (first_B == labels_B).sum(), agreed]).double()
    # One transfer from the device a step.
    loss, hard, soft, n_labelled, n_right, n_agreed = torch.cat([torch.stack(parts).detach().double(), counts]).tolist()
    return Step(loss, hard, soft, len(labels_B), int(n_labelled), int(n_right), int(n_agreed))
