"""Batch normalisation by the statistics of a batch that several ranks hold parts of: what one process would compute.

Changes no module and no weight's name. On CUDA it is torch's own SyncBatchNorm kernels; those run on no CPU (torch 2.15
refuses such tensors), hence a second way here. B images of this rank, C channels, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules._functions import SyncBatchNorm as OnGPU
from torch.overrides import TorchFunctionMode

from pipeline.ranks import Ranks


class NormsOfAllRanks(TorchFunctionMode):
    """Inside, `functional.batch_norm` in training takes mean and variance over the parts of all ranks together.

    So do all layers that call it (torch's and timm's), but not those of TorchScript. Every rank must normalise in the
    same order, a part of one image or more each. Running statistics become the same on all.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Every function of torch passes here."""
        if function is functional.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _batch_norm(
        self, inputs: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if not training:
            return functional.batch_norm(inputs, running_mean, running_var, weight, bias, False, momentum, eps)
        normalised: Tensor
        if inputs.is_cuda and weight is not None:
            normalised = OnGPU.apply(
                inputs,
                weight,
                bias,
                running_mean,
                running_var,
                eps,
                momentum,
                self._ranks.group,
                self._ranks.world_size,
            )
            return normalised
        normalised = WholeBatchNorm.apply(inputs, running_mean, running_var, weight, bias, momentum, eps, self._ranks)
        return normalised


class WholeBatchNorm(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, [B, C, ...]; mean and var over all axes but C, and all ranks."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
        bias: Tensor | None, momentum: float, eps: float, ranks: Ranks,
    ) -> Tensor:  # fmt: skip
        """Also moves the running statistics, by the unbiased variance as torch does."""
        values, axes = _wide(inputs), _axes(inputs)
        var_C, mean_C = torch.var_mean(values, axes, correction=0)
        n_local = inputs.numel() // inputs.shape[1]
        # Each rank's own row of a table of zeros: adding zeros up is exact, so that all ranks see the same bits.
        table = values.new_zeros(ranks.world_size, 2 * len(mean_C) + 1, dtype=torch.float64)
        table[ranks.rank] = torch.cat([mean_C, var_C, mean_C.new_tensor([n_local])])
        ranks.sum(table)
        mean_WC, var_WC, n_W1 = table.split([len(mean_C), len(mean_C), 1], dim=1)
        n_all = n_W1.sum()
        mean_64 = (n_W1 * mean_WC).sum(0) / n_all
        # Chan et al.: the squared distances within each part, and those of the parts' means.
        var_64 = (n_W1 * (var_WC + (mean_WC - mean_64) ** 2)).sum(0) / n_all
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean_64.to(running_mean.dtype), momentum)
            unbiased = var_64 * n_all / (n_all - 1).clamp(min=1)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        mean, scale = (_along(one.to(values.dtype), inputs) for one in (mean_64, (var_64 + eps).rsqrt()))
        centred = (values - mean).mul_(scale)
        ctx.save_for_backward(centred, scale, weight)
        ctx.n_all, ctx.ranks, ctx.dtype = float(n_all), ranks, inputs.dtype
        result = centred if weight is None else centred * _along(_wide(weight), inputs)
        return (result if bias is None else result + _along(_wide(bias), inputs)).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of weight and bias are of this rank's part: whoever sums gradients over ranks sums these, too."""
        centred, scale, weight = ctx.saved_tensors
        grad, axes = _wide(grad), _axes(grad)
        sums_2C = torch.stack([grad.sum(axes), (grad * centred).sum(axes)])
        of_weight = None if weight is None else sums_2C[1].to(weight.dtype, copy=True)
        of_bias = sums_2C[0].clone() if ctx.needs_input_grad[4] else None
        means_2C = ctx.ranks.sum(sums_2C) / ctx.n_all
        of_inputs = grad - _along(means_2C[0], grad) - centred * _along(means_2C[1], grad)
        of_inputs = of_inputs.mul_(scale if weight is None else scale * _along(_wide(weight), grad)).to(ctx.dtype)
        return of_inputs, None, None, of_weight, of_bias, None, None, None


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _axes(tensor: Tensor) -> list[int]:
    return [axis for axis in range(tensor.ndim) if axis != 1]


def _along(values_C: Tensor, like: Tensor) -> Tensor:
    return values_C.view([-1 if axis == 1 else 1 for axis in range(like.ndim)])
