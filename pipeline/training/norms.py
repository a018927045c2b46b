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
    """(x - mean) / sqrt(var + eps) * weight + bias, [B, C, ...]; mean and var over all axes but C, and all ranks.

    By torch's own kernels for a norm with given statistics: composed of elementary operations it took as long as the
    rest of a compact student's step.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
        bias: Tensor | None, momentum: float, eps: float, ranks: Ranks,
    ) -> Tensor:  # fmt: skip
        """Also moves the running statistics, by the unbiased variance as torch does."""
        values = _wide(inputs)
        mean_C, var_C = torch.ops.aten.batch_norm_update_stats(values, None, None, 0.0)
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
        mean, var = mean_64.to(values.dtype), var_64.to(values.dtype)
        wide = [None if one is None else _wide(one) for one in (weight, bias)]
        normalised = functional.batch_norm(values, mean, var, wide[0], wide[1], False, 0.0, eps)
        ctx.save_for_backward(inputs, mean, (var_64 + eps).rsqrt().to(values.dtype), weight)
        ctx.n_all, ctx.ranks = float(n_all), ranks
        return normalised.to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of weight and bias are of this rank's part: whoever sums gradients over ranks sums these, too."""
        inputs, mean, scale, weight = ctx.saved_tensors
        values, wide_grad = _wide(inputs), _wide(grad)
        factor = scale if weight is None else scale * _wide(weight)
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            wide_grad, values, torch.ones_like(mean), None, None, mean, scale, True, 0.0, [False, True, True]
        )
        means_2C = ctx.ranks.sum(torch.stack([of_bias, of_weight])) / ctx.n_all
        # factor * (grad - mean of grad - centred * mean of grad times centred), of which all but grad is a norm of x.
        slope = -factor * means_2C[1]
        unit = torch.ones_like(mean)
        of_inputs = functional.batch_norm(values, mean, unit, slope * scale, -factor * means_2C[0], False, 0.0, 0.0)
        of_inputs.addcmul_(wide_grad, _along(factor, wide_grad))
        needs_weight, needs_bias = ctx.needs_input_grad[3], ctx.needs_input_grad[4]
        return (
            of_inputs.to(inputs.dtype), None, None, of_weight.to(weight.dtype) if needs_weight else None,
            of_bias.to(inputs.dtype if weight is None else weight.dtype) if needs_bias else None, None, None, None,
        )  # fmt: skip


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _axes(tensor: Tensor) -> list[int]:
    return [axis for axis in range(tensor.ndim) if axis != 1]


def _along(values_C: Tensor, like: Tensor) -> Tensor:
    return values_C.view([-1 if axis == 1 else 1 for axis in range(like.ndim)])
