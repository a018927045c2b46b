"""Hinton's distillation loss on cached logits, hard and soft part apart. B batch, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.tasks import UNLABELLED


class LossParts(NamedTuple):
    """`total` is what is minimised; the parts are unweighted. Scalars, in nats."""

    total: Tensor
    hard: Tensor
    soft: Tensor


def hard_loss(
    student_BC: Tensor,
    labels_B: Tensor,
    *,
    class_weights_C: Tensor | None = None,
    label_smoothing: float = 0.0,
    logit_offsets_C: Tensor | None = None,
) -> Tensor:
    """Cross-entropy in nats, mean over the labelled samples; [B, C], int64 [B] -> scalar, 0 if none has a label.

    `class_weights_C` multiplies each sample's loss by its class's weight and does not divide by their sum, so that
    weights of mean 1 over a data set leave its mean loss where it was. `label_smoothing` spreads that share of the
    label evenly over all classes (Szegedy et al. 2016, section 7). `logit_offsets_C` is added to the logits: with
    tau * log(class share) it is the logit-adjusted loss of Menon et al. 2021, eq. 10.
    """
    logits_BC = student_BC if logit_offsets_C is None else student_BC + logit_offsets_C
    # cross_entropy's own weights would weigh each class's part of a smoothed label: a rare class would be all of it.
    loss_B = F.cross_entropy(
        logits_BC, labels_B, ignore_index=UNLABELLED, reduction="none", label_smoothing=label_smoothing
    )
    if class_weights_C is not None:
        loss_B = loss_B * class_weights_C[labels_B.clamp(min=0)]
    return loss_B.sum() / (labels_B != UNLABELLED).sum().clamp(min=1)


def soft_loss(student_BC: Tensor, teacher_BC: Tensor, temperature: float, form: str = "kl") -> Tensor:
    """KL(teacher || student) * T^2 in nats at temperature T > 0; raw logits [B, C] each -> scalar mean over B.

    Hinton et al. 2015, section 2: T^2 keeps the gradient's size independent of T. For T -> infinity it becomes
    half the mean squared difference of the centred logits (their eq. 4); for T -> 0 it goes to 0. With form
    `cross-entropy` T^2 times the teacher's entropy comes on top: another value, the same gradient.
    """
    student = F.log_softmax(student_BC / temperature, dim=1)
    teacher = F.log_softmax(teacher_BC / temperature, dim=1)
    if form == "cross-entropy":
        return -(teacher.exp() * student).sum(dim=1).mean() * temperature**2
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def distillation_loss(
    student_BC: Tensor,
    teacher_BC: Tensor | None,
    labels_B: Tensor,
    *,
    temperature: float,
    alpha: float,
    soft_form: str = "kl",
    **hard_options: Any,
) -> LossParts:
    """alpha * hard + (1 - alpha) * soft. Here alpha weighs the **hard** loss; other texts weigh the soft one.

    Without a teacher (None) the total is the hard loss alone, whatever alpha, and the soft part is 0.
    `hard_options` are those of `hard_loss`.
    """
    hard = hard_loss(student_BC, labels_B, **hard_options)
    if teacher_BC is None:
        return LossParts(hard, hard, hard.new_zeros(()))
    soft = soft_loss(student_BC, teacher_BC, temperature, soft_form)
    return LossParts(alpha * hard + (1 - alpha) * soft, hard, soft)


def tasks_loss(parts: Sequence[LossParts]) -> Tensor:
    """Mean of the tasks' losses, a scalar in nats: the same steps whatever the number of tasks."""
    return torch.stack([part.total for part in parts]).mean()
