"""Parts of the training loop that know no data: optimizer, schedules, the moving average of weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from pipeline.training.config import TrainConfig


def learning_rate(step: int, total_steps: int, lr_peak: float, warmup_fraction: float = 0.05) -> float:
    """Linear warm-up to `lr_peak`, then half a cosine to 0: a pure function of the step (0 <= step < total_steps)."""
    warmup_steps = max(1, round(total_steps * warmup_fraction))
    if step < warmup_steps:
        return lr_peak * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return lr_peak * 0.5 * (1 + math.cos(math.pi * share))


def temperature_at(step: int, total_steps: int, start: float, end: float) -> float:
    """T of one step: along a straight line from `start` at the first step to `end` at the last; `end` 0 is none."""
    if not end:
        return start
    return start + (end - start) * step / max(1, total_steps - 1)


def make_optimizer(model: nn.Module, config: TrainConfig, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum. Biases and the weights of norms (one-dimensional) do not decay."""
    decaying = [weights for weights in model.parameters() if weights.ndim > 1]
    others = [weights for weights in model.parameters() if weights.ndim <= 1]
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        return torch.optim.SGD(groups, lr=config.lr_peak, momentum=config.momentum, nesterov=nesterov, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr_peak, fused=fused)


def is_fused(optimizer: str, device: str, precision: str) -> bool:
    """Whether an optimizer's step is to be a fused one: 2-3 % of a training step on a CPU; MPS had none.

    SGD's leaves momentum uninitialised where the loss scaler of fp16 skips the first step (seen with torch 2.15), as it
    often does.
    """
    return device != "mps" and not (optimizer == "sgd" and precision == "fp16")


class MovingAverage:
    """Exponential moving average of a model's weights and float buffers, as a model of its own.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that short runs are not averages of noise.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        self._average = _tensors(self.model)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after optimizer step `step` (from 0); counters are copied."""
        decay = min(self._decay, (1 + step) / (10 + step))
        current = _tensors(model)
        floats = [(a, c) for a, c in zip(self._average, current, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [c for _, c in floats], 1 - decay)
        for average, now in zip(self._average, current, strict=True):
            if not average.is_floating_point():
                average.copy_(now)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
