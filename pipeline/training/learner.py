"""A student that learns: one optimizer step at a time, with its moving average, in the precision of the run.

Knows no cache, no images on disk and no epochs. B batch, C classes of a task, K columns of all T tasks, S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import RunError, first_line
from pipeline.losses.distillation import LossParts, distillation_loss, tasks_loss
from pipeline.tasks import UNLABELLED, Tasks
from pipeline.training.config import TrainConfig
from pipeline.training.optimisation import (
    MovingAverage,
    learning_rate,
    make_optimizer,
    temperature_at,
)  # fmt: skip
from pipeline.training.precision import autocast, loss_scaler, resolve_precision


@dataclass(frozen=True)
class TaskStep:
    """What one step came to in one task, on the views as they were shown."""

    hard: float
    """Mean over the labelled images, in nats; so is the soft part over all."""
    soft: float
    n_labelled: int
    n_right: int
    """Of the labelled ones."""
    n_agreed: int
    """Images on which the student's first class is that of its soft target."""


@dataclass(frozen=True)
class Step:
    """What one step came to."""

    loss: float
    n_images: int
    tasks: tuple[TaskStep, ...]


class Tally:
    """The sums of an epoch's steps."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.n_images, self._loss = 0, 0.0
        self._sums = {task: dict.fromkeys(("hard", "soft", "labelled", "right", "agreed"), 0.0) for task in tasks}

    def add(self, step: Step) -> None:
        """One more step."""
        self.n_images += step.n_images
        self._loss += step.loss * step.n_images
        for sums, one in zip(self._sums.values(), step.tasks, strict=True):
            for name, value in {
                "hard": one.hard * one.n_labelled, "soft": one.soft * step.n_images,
                "labelled": one.n_labelled, "right": one.n_right, "agreed": one.n_agreed,
            }.items():  # fmt: skip
                sums[name] += value

    @property
    def loss(self) -> float:
        """Mean of what was minimised."""
        return self._loss / self.n_images

    def means(self, taught: bool) -> dict[str, dict[str, float | None]]:
        """Task -> columns of metrics.csv: hard loss and accuracy over labelled images, the others over all."""
        return {task: self._means(sums, taught) for task, sums in self._sums.items()}

    def _means(self, sums: Mapping[str, float], taught: bool) -> dict[str, float | None]:
        labelled = max(1.0, sums["labelled"])
        return {
            "loss_hard": sums["hard"] / labelled, "loss_soft": sums["soft"] / self.n_images,
            "train_accuracy": sums["right"] / labelled,
            "train_agreement": sums["agreed"] / self.n_images if taught else None,
        }  # fmt: skip


class Learner:
    """A model and all that changes with it."""

    def __init__(
        self, model: nn.Module, config: TrainConfig, device: str, tasks: Tasks, *,
        fused: bool, class_weights_K: Tensor | None = None, logit_offsets_K: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.model, self._config, self._device = model, config, device
        self.precision = resolve_precision(config.precision, device)
        self._average = MovingAverage(model, config.ema_decay)
        self._fused = fused
        self._optimizer = make_optimizer(model, config, fused=fused)
        self._scaler = loss_scaler(self.precision, device)
        self._tasks = tasks
        of_columns = {"class_weights_C": class_weights_K, "logit_offsets_C": logit_offsets_K}
        self._hard_options = {
            task: {name: None if values is None else values[columns] for name, values in of_columns.items()}
            for task, columns in tasks.columns.items()
        }

    @property
    def average(self) -> nn.Module:
        """The moving average of the weights, in evaluation mode."""
        return self._average.model

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self, inputs: Tensor, teacher_BK: Tensor | None, labels_BT: Tensor, step: int, total_steps: int) -> Step:
        """Learn from one batch: normalised float32 [B, 3, S, S], raw logits [B, K] or None, int64 [B, T].

        Minimises the mean of the tasks' losses. Where it comes out infinite or undefined the weights are left as they
        are.
        """
        config = self._config
        temperature = temperature_at(step, total_steps, config.temperature, config.temperature_end)
        with autocast(self.precision, self._device):
            student_BK = self.model(inputs)
        student_BK = student_BK.float()
        parts = [
            distillation_loss(
                student_BK[:, columns], None if teacher_BK is None else teacher_BK[:, columns], labels_BT[:, number],
                temperature=temperature, alpha=config.alpha, soft_form=config.soft_loss,
                label_smoothing=config.label_smoothing, **self._hard_options[task],
            ) for number, (task, columns) in enumerate(self._tasks.columns.items())
        ]  # fmt: skip
        loss = tasks_loss(parts)
        found = _tally(loss, parts, self._tasks, student_BK.detach(), teacher_BK, labels_BT)
        if math.isfinite(found.loss):
            self._descend(loss, learning_rate(step, total_steps, config.lr_peak, config.warmup_fraction))
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
        """Take up what `state` gave; RunError for what no training gave."""
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["ema"])
            self._optimizer.load_state_dict(state["optimizer"])
            if scaler := state.get("scaler"):  # empty of a run that began on a device of another precision
                self._scaler.load_state_dict(scaler)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"the saved state is none of this training ({first_line(error)}): start it anew") from error
        for group in self._optimizer.param_groups:
            group["fused"] = self._fused  # the saved flag is that of the machine it ran on

    def is_finite(self) -> bool:
        """Whether every weight and every statistic of a norm is a number; other buffers may hold infinities."""
        statistics = (
            buffer for name, buffer in self.model.named_buffers()
            if name.rpartition(".")[2] in ("running_mean", "running_var")
        )  # fmt: skip
        return all(bool(torch.isfinite(numbers).all()) for numbers in (*self.model.parameters(), *statistics))


def _tally(
    loss: Tensor, parts: Sequence[LossParts], tasks: Tasks, student_BK: Tensor, teacher_BK: Tensor | None,
    labels_BT: Tensor,
) -> Step:  # fmt: skip
    found = [loss.detach().double()]
    for number, (part, columns) in enumerate(zip(parts, tasks.columns.values(), strict=True)):
        labels_B, first_B = labels_BT[:, number], student_BK[:, columns].argmax(dim=1)
        agreed = first_B.new_zeros(())
        if teacher_BK is not None:
            agreed = (first_B == teacher_BK[:, columns].argmax(dim=1)).sum()
        counts = [(labels_B != UNLABELLED).sum(), (first_B == labels_B).sum(), agreed]
        found += [value.detach().double() for value in (part.hard, part.soft, *counts)]
    # One transfer from the device a step.
    total, *rest = torch.stack(found).tolist()
    return Step(
        total, len(labels_BT),
        tuple(TaskStep(*rest[at : at + 2], *map(int, rest[at + 2 : at + 5])) for at in range(0, len(rest), 5)),
    )  # fmt: skip
