"""Several ranks that take one step together: each its part of the batch, the gradient and the loss of the whole.

The gradients are summed after the backward pass instead of by DistributedDataParallel: parts of unequal size and tasks
with labels missing are then weighed exactly, a batch smaller than the number of ranks needs no empty forward pass, and
the model keeps its names. DDP would hide the sum behind the backward pass; of a compact student it is 5 to 25 MB.
B batch, K columns of all T tasks.
"""

from __future__ import annotations

import contextlib
import io
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data.view_batches import ViewBatch
from pipeline.errors import SettingError
from pipeline.losses.distillation import LossParts
from pipeline.ranks import Ranks
from pipeline.training.norms import NormsOfAllRanks

if TYPE_CHECKING:
    from pipeline.training.learner import Step


class Together:
    """What a step of several ranks has beside that of one."""

    def __init__(self, ranks: Ranks, model: nn.Module, check_interrupt: Callable[[], None]) -> None:
        """SettingError for a model whose batch norms cannot see the other ranks."""
        if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            raise SettingError("a TorchScript student cannot be trained by several ranks: start it without torchrun")
        self._ranks, self._check_interrupt = ranks, check_interrupt
        self._parameters = [weights for weights in model.parameters() if weights.requires_grad]
        self._n_batches, self._is_whole = deque[int](), False

    def parts(self, batches: Sequence[ViewBatch]) -> list[ViewBatch]:
        """This rank's part of each batch of an epoch; all of one that has fewer images than there are ranks."""
        n_ranks = self._ranks.world_size
        self._n_batches = deque(len(batch) for batch in batches)
        return [batch[self._ranks.share(len(batch))] if len(batch) >= n_ranks else batch for batch in batches]

    def norms(self) -> contextlib.AbstractContextManager[Any]:
        """Around the forward pass of the next batch."""
        # Where every rank has the whole batch, its norms are those of one process anyway.
        self._is_whole = self._n_batches.popleft() < self._ranks.world_size
        return contextlib.nullcontext() if self._is_whole else NormsOfAllRanks(self._ranks)

    def weigh(self, parts: Sequence[LossParts], step: Step, alpha: float, *, taught: bool) -> tuple[Tensor, Step]:
        """(this rank's share of the batch's loss, what the whole batch came to: the same on all ranks).

        The shares sum up to the loss of one process: hard parts are means over the batch's labelled images, soft ones
        over all of it. Raises KeyboardInterrupt on all ranks, at one step, where one of them was interrupted.
        """
        share = 1 / self._ranks.world_size if self._is_whole else 1.0
        sums = [
            step.n_images * share, *(value * share for one in step.tasks for value in (
                one.hard * one.n_labelled, one.soft * step.n_images, one.n_labelled, one.n_right, one.n_agreed,
            )),
        ]  # fmt: skip
        whole = self._ranks.sum(torch.tensor([self._is_stopped(), *sums], dtype=torch.float64)).tolist()
        if whole[0]:
            raise KeyboardInterrupt
        n_images, found, losses, totals = round(whole[1]), [], [], []
        for number, (part, one) in enumerate(zip(parts, step.tasks, strict=True)):
            hard, soft, n_labelled, n_right, n_agreed = whole[2 + 5 * number : 7 + 5 * number]
            n_hard = max(1, round(n_labelled))
            found.append(type(one)(hard / n_hard, soft / n_images, *map(round, (n_labelled, n_right, n_agreed))))
            of_hard, of_soft = share * one.n_labelled / n_hard, share * step.n_images / n_images
            if taught:
                losses.append(alpha * of_hard * part.hard + (1 - alpha) * of_soft * part.soft)
                totals.append(alpha * found[-1].hard + (1 - alpha) * found[-1].soft)
            else:
                losses.append(of_hard * part.hard)
                totals.append(found[-1].hard)
        return torch.stack(losses).mean(), type(step)(sum(totals) / len(totals), n_images, tuple(found))

    def sum_gradients(self) -> None:
        """Of all ranks, in one piece, bit-equal on all; infinities of a scaled loss come to all ranks, too."""
        with_gradient = [weights for weights in self._parameters if weights.grad is not None]
        if not with_gradient:
            return
        gradients = [weights.grad for weights in with_gradient if weights.grad is not None]
        flat = self._ranks.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        pieces = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [piece.view(g.shape) for piece, g in zip(pieces, gradients, strict=True)])

    def _is_stopped(self) -> float:
        try:
            self._check_interrupt()
        except KeyboardInterrupt:
            return 1.0
        return 0.0


def same_state(ranks: Ranks, state: dict[str, Any]) -> dict[str, Any]:
    """The first rank's tensors and plain values, for all."""
    buffer = io.BytesIO()
    if ranks.is_first:
        torch.save(state, buffer)
    loaded: dict[str, Any] = torch.load(
        io.BytesIO(ranks.broadcast(buffer.getvalue())), map_location="cpu", weights_only=True
    )
    return loaded


def same_row(ranks: Ranks, row: Mapping[str, Any]) -> dict[str, Any]:
    """The first rank's row of an epoch, for all; but processor seconds are those of all ranks."""
    cpu_s = ranks.gather(float(row["cpu_s"]))
    return {**ranks.broadcast(dict(row)), "cpu_s": sum(cpu_s)}
