"""Hinton's distillation loss on cached logits, hard and soft part apart. B batch, C classes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

UNLABELLED = -1
"""The label of a sample that takes no part in the hard loss."""


class LossParts(NamedTuple):
    """`total` is what is minimised; the parts are unweighted. Scalars, in nats."""

    total: Tensor
    hard: Tensor
    soft: Tensor


def hard_loss(student_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy in nats, mean over the labelled samples; [B, C], int64 [B] -> scalar, 0 if none has a label."""
    n_labelled = (labels_B != UNLABELLED).sum().clamp(min=1)
    return F.cross_entropy(student_BC, labels_B, ignore_index=UNLABELLED, reduction="sum") / n_labelled


def soft_loss(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) * T^2 in nats at temperature T > 0; raw logits [B, C] each -> scalar mean over B.

    Hinton et al. 2015, section 2: T^2 keeps the gradient's size independent of T. For T -> infinity it becomes
    half the mean squared difference of the centred logits (their eq. 4); for T -> 0 it goes to 0.
    """
    student = F.log_softmax(student_BC / temperature, dim=1)
    teacher = F.log_softmax(teacher_BC / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def distillation_loss(
    student_BC: Tensor, teacher_BC: Tensor | None, labels_B: Tensor, *, temperature: float, alpha: float
) -> LossParts:
    """alpha * hard + (1 - alpha) * soft. Here alpha weighs the **hard** loss; other texts weigh the soft one.

    Without a teacher (None) the total is the hard loss alone, whatever alpha, and the soft part is 0.
    """
    hard = hard_loss(student_BC, labels_B)
    if teacher_BC is None:
        return LossParts(hard, hard, hard.new_zeros(()))
    soft = soft_loss(student_BC, teacher_BC, temperature)
    return LossParts(alpha * hard + (1 - alpha) * soft, hard, soft)
