"""One step of training: each setting changes what it should, and nothing moves on a loss that is no number."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.losses.distillation import distillation_loss
from pipeline.tasks import UNLABELLED, Tasks
from pipeline.training.config import TrainConfig
from pipeline.training.learner import Learner, Step, Tally, TaskStep
from pipeline.training.optimisation import is_fused

N_CLASSES = 3
TASKS = Tasks({"class": ("mel", "nv", "vasc")})


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, N_CLASSES))


def batch(n_images: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, teacher logits, labels."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n_images, 3, 8, 8, generator=generator)
    return (
        inputs,
        3 * torch.randn(n_images, N_CLASSES, generator=generator),
        torch.arange(n_images)[:, None] % N_CLASSES,
    )


def learner(*, weights: list[float] | None = None, offsets: list[float] | None = None, **settings: Any) -> Learner:
    config = TrainConfig(**{"lr_peak": 0.1, "warmup_fraction": 0.0, "ema_decay": 0.0, "precision": "fp32", **settings})
    made = {
        "class_weights_K": None if weights is None else torch.tensor(weights),
        "logit_offsets_K": None if offsets is None else torch.tensor(offsets),
    }
    fused = is_fused(config.optimizer, "cpu", config.precision)
    return Learner(small_model().train(), config, "cpu", TASKS, fused=fused, **made)


def stepped(
    *, n_steps: int = 1, labels: Tensor | None = None, taught: bool = True, **settings: Any
) -> tuple[Learner, list[Step]]:
    """A learner after some steps of ten on one batch."""
    one, (inputs, teacher, own_labels) = learner(**settings), batch()
    labels = own_labels if labels is None else labels
    return one, [one.step(inputs, teacher if taught else None, labels, step, 10) for step in range(n_steps)]


def weights_of(one: Learner) -> Tensor:
    return torch.cat([weights.detach().flatten() for weights in one.model.parameters()])


def start() -> Tensor:
    return weights_of(learner())


def moved(one: Learner) -> float:
    return float((weights_of(one) - start()).norm())


@pytest.mark.parametrize(
    "setting",
    [
        {"optimizer": "sgd"}, {"weight_decay": 0.5}, {"clip_norm": 0.01, "optimizer": "sgd"}, {"alpha": 0.9},
        {"temperature": 1.0}, {"label_smoothing": 0.3}, {"weights": [2.0, 0.5, 0.5]}, {"offsets": [0.0, -1.0, -3.0]},
        {"lr_peak": 0.01}, {"warmup_fraction": 0.5}, {"temperature_end": 1.0}, {"momentum": 0.0, "optimizer": "sgd"},
        {"precision": "bf16"},
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_of_a_step_changes_the_weights(setting: dict[str, Any]) -> None:
    plain = {"optimizer": "sgd"} if "momentum" in setting or "clip_norm" in setting else {}
    without, _ = stepped(n_steps=3, **plain)
    with_it, _ = stepped(n_steps=3, **setting)
    assert not torch.equal(weights_of(without), weights_of(with_it))


def test_both_forms_of_the_soft_loss_teach_the_same() -> None:
    one, (first,) = stepped(soft_loss="kl", alpha=0.0)
    other, (second,) = stepped(soft_loss="cross-entropy", alpha=0.0)
    assert second.tasks[0].soft > first.tasks[0].soft
    torch.testing.assert_close(weights_of(one), weights_of(other))


def test_a_gradient_is_clipped_to_its_norm() -> None:
    one, _ = stepped(optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.01)
    assert moved(one) == pytest.approx(0.1 * 0.01, rel=1e-3)  # lr x norm
    free, _ = stepped(optimizer="sgd", momentum=0.0, weight_decay=0.0)
    assert moved(free) > 10 * moved(one)


def test_momentum_carries_on() -> None:
    with_it, _ = stepped(n_steps=4, optimizer="sgd", momentum=0.9, weight_decay=0.0)
    without, _ = stepped(n_steps=4, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    assert moved(with_it) > moved(without)


def test_biases_and_norms_do_not_decay() -> None:
    """Without a gradient AdamW moves what decays alone."""
    one = learner(weight_decay=0.5)
    before = copy.deepcopy(one.model)
    for weights in one.model.parameters():
        weights.grad = torch.zeros_like(weights)
    one._optimizer.step()
    for (name, now), then in zip(one.model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then) == (now.ndim == 1), name


def test_the_moving_average_lags_behind_the_weights_unless_it_is_off() -> None:
    for decay, is_same in ((0.999, False), (0.0, True)):
        one, _ = stepped(n_steps=3, ema_decay=decay)
        average = torch.cat([weights.flatten() for weights in one.average.parameters()])
        assert torch.equal(average, weights_of(one)) == is_same


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_keeps_weights_and_loss_in_float32(precision: str) -> None:
    one, (step,) = stepped(precision=precision)
    _, (reference,) = stepped(precision="fp32")
    assert all(weights.dtype == torch.float32 for weights in one.model.parameters())
    assert step.loss == pytest.approx(reference.loss, rel=0.02)
    assert step.loss != reference.loss
    assert one.precision == precision


def test_only_fp16_scales_its_loss() -> None:
    scales = {name: learner(precision=name).state()["scaler"] for name in ("fp32", "bf16", "fp16")}
    assert scales["fp32"] == scales["bf16"] == {}
    assert scales["fp16"]["scale"] > 1


def test_a_first_step_that_the_loss_scaler_skips_leaves_no_trace() -> None:
    """Torch's fused SGD would go on with whatever stood in the memory of its momentum."""
    settings = {"precision": "fp16", "optimizer": "sgd"}
    one, (inputs, teacher, labels) = learner(**settings), batch()
    one._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    one.step(inputs, teacher, labels, 0, 10)
    assert torch.equal(weights_of(one), start())
    assert not [state for state in one._optimizer.state.values() if state.get("momentum_buffer") is not None]


def test_an_image_without_a_label_learns_from_the_teacher_alone() -> None:
    unlabelled = torch.full_like(batch()[2], UNLABELLED)
    one, (step,) = stepped(labels=unlabelled, alpha=0.5)
    one_task = step.tasks[0]
    assert (one_task.n_labelled, one_task.n_right, one_task.hard) == (0, 0, 0.0)
    assert one_task.soft > 0
    assert moved(one) > 0
    assert moved(stepped(labels=unlabelled, taught=False, weight_decay=0.0)[0]) == 0


def test_a_loss_that_is_no_number_moves_nothing() -> None:
    one, (inputs, teacher, labels) = learner(), batch()
    step = one.step(inputs * float("nan"), teacher, labels, 0, 10)
    assert step.loss != step.loss
    assert torch.equal(weights_of(one), start())


@pytest.mark.parametrize("name", ["3.weight", "1.running_var"])
def test_weights_and_statistics_that_are_no_numbers_are_noticed(name: str) -> None:
    one = learner()
    one.model.register_buffer("mask", torch.tensor(-float("inf")))
    assert one.is_finite()
    one.model.state_dict()[name].view(-1)[0] = float("inf")
    assert not one.is_finite()


def test_a_learner_goes_on_from_its_state_as_if_nothing_had_happened() -> None:
    settings = {"precision": "fp16", "optimizer": "sgd", "ema_decay": 0.9}
    straight, _ = stepped(n_steps=4, **settings)
    first, _ = stepped(n_steps=2, **settings)
    state = copy.deepcopy(first.state())
    second, (inputs, teacher, labels) = learner(**settings), batch()
    second.restore(state)
    for step in (2, 3):
        second.step(inputs, teacher, labels, step, 10)
    assert torch.equal(weights_of(second), weights_of(straight))
    for name, weights in second.average.state_dict().items():
        assert torch.equal(weights, straight.average.state_dict()[name]), name


@pytest.mark.parametrize(("began", "goes_on"), [("fp32", "fp16"), ("fp16", "fp32")])
def test_a_learner_goes_on_in_the_precision_of_another_device(began: str, goes_on: str) -> None:
    """`auto` is fp32 on a CPU, fp16 on an older GPU."""
    first, _ = stepped(n_steps=2, precision=began)
    second, (inputs, teacher, labels) = learner(precision=goes_on), batch()
    second.restore(copy.deepcopy(first.state()))
    assert torch.equal(weights_of(second), weights_of(first))
    assert second.step(inputs, teacher, labels, 2, 10).loss > 0


def test_the_means_of_an_epoch_weigh_each_image_alike() -> None:
    tally = Tally(["class"])
    three = TaskStep(hard=2.0, soft=0.5, n_labelled=1, n_right=1, n_agreed=3)
    one = TaskStep(hard=0.0, soft=2.0, n_labelled=1, n_right=0, n_agreed=0)
    tally.add(Step(loss=1.0, n_images=3, tasks=(three,)))
    tally.add(Step(loss=4.0, n_images=1, tasks=(one,)))
    assert (tally.n_images, tally.loss) == (4, 7 / 4)
    assert tally.means(taught=True)["class"] == pytest.approx(
        {"loss_hard": 1.0, "loss_soft": 3.5 / 4, "train_accuracy": 0.5, "train_agreement": 0.75}
    )
    assert tally.means(taught=False)["class"]["train_agreement"] is None


def two_tasks(**settings: Any) -> Learner:
    """A first task of one class more than the second; together the columns of the small model."""
    config = TrainConfig(lr_peak=0.1, warmup_fraction=0.0, ema_decay=0.0, precision="fp32", **settings)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    return Learner(model, config, "cpu", Tasks({"modality": ("CT", "MR", "US"), "sex": ("f", "m")}), fused=True)


def test_several_tasks_minimise_the_mean_of_their_own_losses() -> None:
    inputs, _, _ = batch()
    teacher = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([[0, 0], [1, 1], [2, 0], [UNLABELLED, 1], [0, UNLABELLED], [UNLABELLED, UNLABELLED]])
    one = two_tasks()
    with torch.no_grad():
        said = one.model(inputs)
    step = one.step(inputs, teacher, labels, 0, 10)
    parts = [
        distillation_loss(said[:, where], teacher[:, where], labels[:, task], temperature=4.0, alpha=0.3)
        for task, where in enumerate((slice(0, 3), slice(3, 5)))
    ]
    assert step.loss == pytest.approx(float(sum(part.total for part in parts)) / 2, rel=1e-6)
    assert [found.hard for found in step.tasks] == pytest.approx([float(part.hard) for part in parts])
    assert [found.soft for found in step.tasks] == pytest.approx([float(part.soft) for part in parts])
    assert [found.n_labelled for found in step.tasks] == [4, 4]


def test_an_image_without_any_label_teaches_by_its_soft_targets_alone() -> None:
    inputs, _, _ = batch()
    teacher, none = torch.randn(6, 5), torch.full((6, 2), UNLABELLED)
    soft, hard = two_tasks(alpha=0.3), two_tasks(alpha=1.0)
    start = weights_of(soft)
    soft.step(inputs, teacher, none, 0, 10)
    hard.step(inputs, teacher, none, 0, 10)
    assert not torch.equal(weights_of(soft), start)
    decayed = weights_of(two_tasks())[:960] * (1 - 0.1 * 0.05)  # AdamW's decay needs no gradient
    torch.testing.assert_close(weights_of(hard)[:960], decayed)
