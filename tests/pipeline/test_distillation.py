"""The distillation loss against numbers that were worked out apart from it, its limits, and its missing parts.

The numbers of this page come from plain Python, with p_k = exp(l_k / T) / sum_j exp(l_j / T):
    hard = -log p_label(T = 1), mean over the labelled samples
    soft = T^2 * sum_k q_k * (log q_k - log p_k), q the teacher's, mean over the batch
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.losses.distillation import distillation_loss, hard_loss, soft_loss
from pipeline.tasks import UNLABELLED

STUDENT = [[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]]
TEACHER = [[2.0, 1.0, 0.0], [-0.5, 0.25, 1.5]]
LABELS = [1, 2]
HARD = 0.26512634393268697
SOFT = {1.0: 0.39775401521604575, 2.0: 0.5017017736333989, 4.0: 0.5216703202691555}
"""Temperature -> soft loss."""


def logits(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def labels(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def test_the_hard_loss_is_the_hand_computed_cross_entropy() -> None:
    assert hard_loss(logits(STUDENT), labels(*LABELS)).item() == pytest.approx(HARD, rel=1e-12)


@pytest.mark.parametrize("temperature", SOFT)
def test_the_soft_loss_is_the_hand_computed_divergence(temperature: float) -> None:
    found = soft_loss(logits(STUDENT), logits(TEACHER), temperature)
    assert found.item() == pytest.approx(SOFT[temperature], rel=1e-12)


def test_two_classes_can_be_checked_in_the_head() -> None:
    """Teacher (log 3, 0) says 3/4 and 1/4, student (0, 0) one half each: KL = 3/4 log 3/2 + 1/4 log 1/2."""
    found = soft_loss(logits([[0.0, 0.0]]), logits([[math.log(3), 0.0]]), 1.0)
    assert found.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-12)
    assert found.item() == pytest.approx(0.13081203594113697, rel=1e-12)
    assert hard_loss(logits([[0.0, 0.0]]), labels(0)).item() == pytest.approx(0.6931471805599453, rel=1e-12)


def test_the_divergence_is_of_the_teacher_from_the_student_not_the_reverse() -> None:
    there, back = (soft_loss(logits(a), logits(b), 1.0).item() for a, b in ((STUDENT, TEACHER), (TEACHER, STUDENT)))
    assert there == pytest.approx(SOFT[1.0])
    assert abs(there - back) > 0.05


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_weighs_the_hard_loss(alpha: float) -> None:
    parts = distillation_loss(logits(STUDENT), logits(TEACHER), labels(*LABELS), temperature=4.0, alpha=alpha)
    assert parts.total.item() == pytest.approx(alpha * HARD + (1 - alpha) * SOFT[4.0], rel=1e-12)
    assert parts.hard.item() == pytest.approx(HARD, rel=1e-12)
    assert parts.soft.item() == pytest.approx(SOFT[4.0], rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_without_a_teacher_the_total_is_the_hard_loss(alpha: float) -> None:
    parts = distillation_loss(logits(STUDENT), None, labels(*LABELS), temperature=4.0, alpha=alpha)
    assert parts.total.item() == pytest.approx(HARD, rel=1e-12)
    assert parts.soft.item() == 0


def test_a_high_temperature_matches_logits() -> None:
    """Hinton et al. 2015, eq. 4: half the mean squared difference of the logits, each centred over its classes."""
    student, teacher = (rows - rows.mean(dim=1, keepdim=True) for rows in (logits(STUDENT), logits(TEACHER)))
    limit = 0.5 * (student - teacher).square().mean().item()
    assert limit == pytest.approx(0.5034722222222222, rel=1e-12)
    errors = [abs(soft_loss(logits(STUDENT), logits(TEACHER), t).item() - limit) for t in (10.0, 100.0, 1000.0)]
    assert errors[0] < 0.1 * limit
    assert errors[1] < 0.15 * errors[0]  # the error falls as 1 / T
    assert errors[2] < 0.15 * errors[1]


def test_a_low_temperature_goes_to_zero_as_the_gap_of_the_students_logits() -> None:
    """KL at T -> 0 is (student's best - student's logit of the teacher's choice) / T, times T^2.

    Sample 0 has the gap 2 - 1 = 1, sample 1 none: the loss is T / 2.
    """
    for temperature in (0.05, 0.02, 0.01):
        found = soft_loss(logits(STUDENT), logits(TEACHER), temperature).item()
        assert found == pytest.approx(temperature / 2, rel=1e-6)


def test_the_gradient_is_t_times_the_difference_of_probabilities() -> None:
    """dL/dstudent = T * (p - q) / B: T^2 of the loss, 1 / T of the inner derivative."""
    for temperature in (1.0, 4.0, 20.0):
        student = logits(STUDENT).requires_grad_()
        soft_loss(student, logits(TEACHER), temperature).backward()
        p, q = ((rows / temperature).softmax(dim=1) for rows in (logits(STUDENT), logits(TEACHER)))
        torch.testing.assert_close(student.grad, temperature * (p - q) / 2)


def test_the_size_of_the_gradient_hardly_depends_on_the_temperature() -> None:
    norms = []
    for temperature in (4.0, 20.0, 100.0):
        student = logits(STUDENT).requires_grad_()
        soft_loss(student, logits(TEACHER), temperature).backward()
        assert student.grad is not None
        norms.append(student.grad.norm().item())
    assert max(norms) / min(norms) < 1.5


def test_unlabelled_samples_take_no_part_in_the_hard_loss_but_learn_from_the_teacher() -> None:
    alone = hard_loss(logits(STUDENT[:1]), labels(LABELS[0])).item()
    parts = distillation_loss(
        logits(STUDENT), logits(TEACHER), labels(LABELS[0], UNLABELLED), temperature=4.0, alpha=0.3
    )
    assert parts.hard.item() == pytest.approx(alone, rel=1e-12)
    assert parts.soft.item() == pytest.approx(SOFT[4.0], rel=1e-12)


def test_a_batch_without_any_label_has_the_hard_loss_zero_and_no_nan_in_its_gradient() -> None:
    student = logits(STUDENT).requires_grad_()
    parts = distillation_loss(student, logits(TEACHER), labels(UNLABELLED, UNLABELLED), temperature=4.0, alpha=0.3)
    assert parts.hard.item() == 0
    assert parts.total.item() == pytest.approx(0.7 * SOFT[4.0], rel=1e-12)
    parts.total.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() > 0

    student.grad = None
    parts = distillation_loss(student, None, labels(UNLABELLED, UNLABELLED), temperature=4.0, alpha=0.3)
    assert parts.total.item() == 0
    parts.total.backward()
    assert student.grad.tolist() == [[0.0] * 3] * 2


def test_no_gradient_flows_where_the_parts_have_no_weight() -> None:
    """alpha 0 learns nothing from labels, alpha 1 nothing from the teacher."""
    for alpha, other in ((0.0, 0), (1.0, 1)):
        gradients = []
        for label, teacher in ((0, TEACHER), (1, TEACHER)) if other == 0 else ((0, TEACHER), (0, STUDENT)):
            student = logits(STUDENT).requires_grad_()
            targets = labels(label, label)
            distillation_loss(student, logits(teacher), targets, temperature=2.0, alpha=alpha).total.backward()
            gradients.append(student.grad)
        torch.testing.assert_close(gradients[0], gradients[1])
        assert gradients[0].abs().max() > 0.01


rows_of_logits = st.lists(st.floats(-30, 30), min_size=3, max_size=3)
temperatures = st.floats(0.5, 50)


@given(student=rows_of_logits, teacher=rows_of_logits, temperature=temperatures)
def test_the_soft_loss_is_never_negative(student: list[float], teacher: list[float], temperature: float) -> None:
    found = soft_loss(logits([student]), logits([teacher]), temperature).item()
    assert math.isfinite(found)
    assert found >= -1e-9


@given(teacher=rows_of_logits, shift=st.floats(-100, 100), temperature=temperatures)
def test_the_soft_loss_is_zero_for_logits_equal_up_to_a_shift(
    teacher: list[float], shift: float, temperature: float
) -> None:
    student = [value + shift for value in teacher]
    assert soft_loss(logits([student]), logits([teacher]), temperature).item() == pytest.approx(0, abs=1e-9)


def test_medsiglip_sized_logits_stay_finite_in_float32() -> None:
    """Its scale is 112 and its bias -16: raw logits reach tens."""
    teacher = torch.tensor([[-16.0, 40.0, -90.0]])
    student = torch.tensor([[80.0, -80.0, 0.0]], requires_grad=True)
    for temperature in (0.1, 1.0, 4.0):
        found = soft_loss(student, teacher, temperature)
        assert found.isfinite()
        found.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_class_weights_multiply_each_samples_own_loss() -> None:
    """Per sample -log p_label is 0.46436..., 0.06588...: weighted by 1 (label 1) and 3 (label 2), over two samples."""
    one, other = (hard_loss(logits([row]), labels(label)).item() for row, label in zip(STUDENT, LABELS, strict=True))
    found = hard_loss(logits(STUDENT), labels(*LABELS), class_weights_C=logits([[9.0, 1.0, 3.0]])[0])
    assert found.item() == pytest.approx((1 * one + 3 * other) / 2, rel=1e-12)
    assert (one + other) / 2 == pytest.approx(HARD, rel=1e-12)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    """(1 - s) * -log p_label + s * mean_k -log p_k."""
    each = -torch.log_softmax(logits(STUDENT), dim=1)
    expected = (0.9 * HARD) + 0.1 * each.mean(dim=1).mean().item()
    assert hard_loss(logits(STUDENT), labels(*LABELS), label_smoothing=0.1).item() == pytest.approx(expected, rel=1e-12)


def test_a_smoothed_label_weighs_what_its_class_weighs() -> None:
    weights = logits([[1e6, 1.0, 3.0]])[0]
    one, other = (
        hard_loss(logits([row]), labels(label), label_smoothing=0.1).item()
        for row, label in zip(STUDENT, LABELS, strict=True)
    )
    found = hard_loss(logits(STUDENT), labels(*LABELS), class_weights_C=weights, label_smoothing=0.1)
    assert found.item() == pytest.approx((1 * one + 3 * other) / 2, rel=1e-12)
    with_another = hard_loss(
        logits([*STUDENT, STUDENT[0]]), labels(*LABELS, UNLABELLED), class_weights_C=weights, label_smoothing=0.1
    )
    assert with_another.item() == pytest.approx(found.item(), rel=1e-12)


def test_logit_offsets_are_added_in_the_hard_loss_alone() -> None:
    offsets = logits([[math.log(0.7), math.log(0.2), math.log(0.1)]])[0]
    found = distillation_loss(
        logits(STUDENT), logits(TEACHER), labels(*LABELS), temperature=2.0, alpha=0.3, logit_offsets_C=offsets
    )
    assert found.hard.item() == pytest.approx(hard_loss(logits(STUDENT) + offsets, labels(*LABELS)).item(), rel=1e-12)
    assert found.soft.item() == pytest.approx(SOFT[2.0], rel=1e-12)


def test_with_the_share_of_its_class_as_offset_a_constant_student_is_right_about_all() -> None:
    """Menon et al. 2021: logits that say nothing, plus the prior, are the prior; the loss is then its entropy."""
    prior = [0.5, 0.25, 0.25]
    offsets = logits([[math.log(p) for p in prior]])[0]
    found = hard_loss(torch.zeros(4, 3, dtype=torch.float64), labels(0, 0, 1, 2), logit_offsets_C=offsets)
    assert found.item() == pytest.approx(-sum(p * math.log(p) for p in prior), rel=1e-12)


@pytest.mark.parametrize("temperature", SOFT)
def test_the_cross_entropy_form_is_larger_by_the_teachers_entropy_and_has_the_same_gradient(temperature: float) -> None:
    entropy = -(torch.softmax(t := logits(TEACHER) / temperature, 1) * torch.log_softmax(t, 1)).sum(1).mean().item()
    gradients = []
    for form, more in (("kl", 0.0), ("cross-entropy", entropy * temperature**2)):
        student = logits(STUDENT).requires_grad_()
        loss = soft_loss(student, logits(TEACHER), temperature, form)
        assert loss.item() == pytest.approx(SOFT[temperature] + more, rel=1e-12)
        loss.backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)
