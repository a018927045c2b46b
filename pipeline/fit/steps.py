"""The steps of a fit: one batch of views -> changed weights, or what to do where that cannot be.

Never loads a model, reads an image or writes a file. Run: softlabel teacher fit DATA --from MODEL -o DIR
B batch, T tasks, K classes of all of them, S pixels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import RunError, first_line
from pipeline.fit.tuning import DualEncoderTuning
from pipeline.tasks import UNLABELLED, Tasks
from pipeline.training.optimisation import learning_rate

GRADIENT_NORM = 1.0
"""Longer gradients are cut to this length, as where the models that are fitted here were trained."""
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")


class Steps:
    """AdamW with warm-up and cosine, gradient clipping and, in fp16, a loss scale."""

    def __init__(
        self, model: DualEncoderTuning, tasks: Tasks, *, lr_peak: float, weight_decay: float, total_steps: int
    ) -> None:
        self._model, self._tasks, self._lr_peak, self._total = model, tasks, lr_peak, total_steps
        learning = list(model.learning.values())
        groups = [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": weight_decay},
            # Biases, norms, scale and bias of the logits: pulling them to zero regularises nothing.
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=lr_peak, fused=model.device != "mps")
        self._scaler = torch.amp.GradScaler(model.device, enabled=model.precision == "fp16")

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        lr: float = self._optimizer.param_groups[0]["lr"]
        return lr

    def __call__(self, pixels: Tensor, labels_BT: Tensor, step: int) -> float:
        """Step number `step` (from 0), on uint8 views [B, 3, S, S], int64 [B, T]; the mean loss of its tasks, in nats.

        RunError, before any weight changes, where loss or gradient are no finite numbers.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, self._total, self._lr_peak)
        loss = self._loss(self._model.logits(pixels, self._model.class_texts()), labels_BT.to(self._model.device))
        self._check_finite("loss", loss.item(), step)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._model.learning.values(), GRADIENT_NORM)
        if not self._scaler.is_enabled():  # the loss scale leaves such steps out by itself, and falls
            self._check_finite("gradient", norm.item(), step)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._model.keep_in_range()
        return loss.item()

    def _loss(self, logits_BK: Tensor, labels_BT: Tensor) -> Tensor:
        """Mean over the tasks in which an image of the batch has a label, of the labelled ones' own losses."""
        parts = []
        for labels_B, columns in zip(labels_BT.unbind(1), self._tasks.columns.values(), strict=True):
            labelled = labels_B != UNLABELLED
            if labelled.any():
                parts.append(self._model.loss(logits_BK[labelled][:, columns], labels_B[labelled]))
        return torch.stack(parts).mean()

    def _check_finite(self, what: str, value: float, step: int) -> None:
        if math.isfinite(value):
            return
        half = ", or numbers too large for fp16: --precision bf16 or fp32" if self._scaler.is_enabled() else ""
        raise RunError(
            f"the {what} is not finite in step {step + 1:,} of {self._total:,}; the epochs before it stay as they were "
            f"saved. The usual cause is a learning rate that is too high (now {self._lr_peak:g}): lower --lr{half}. "
            "Other settings are another fit: choose another -o"
        )

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, to go on from."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def take(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self._optimizer.load_state_dict(state["optimizer"])
        for group in self._optimizer.param_groups:
            group["fused"] = self._model.device != "mps"  # the saved flag is that of the machine it ran on
        if state["scaler"] and self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])


@contextlib.contextmanager
def out_of_memory(model: DualEncoderTuning, batch_size: int, gradient_checkpointing: bool) -> Iterator[None]:
    """Inside, the device's refusal of memory becomes a RunError that says what needs less."""
    try:
        yield
    except RuntimeError as error:
        said = first_line(error)
        if not any(words in said for words in _OUT_OF_MEMORY):
            raise
        checkpointing = "" if gradient_checkpointing else "pass --gradient-checkpointing, "
        raise RunError(
            f"out of memory on {model.device}: lower --batch-size (now {batch_size}), {checkpointing}or let fewer "
            f"blocks learn by --last-layers (of {model.n_blocks}); then start anew with another -o\n  {said}"
        ) from error
