"""Dropout: it acts, in training alone, and changes neither weights nor their names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from pipeline.card import StudentCard
from pipeline.errors import SettingError
from pipeline.formats import torchscript
from pipeline.students.build import _construct, _weightless, build_student
from pipeline.students.dropout import DroppingLinear, set_head_dropout
from pipeline.students.names import find_source, student_names
from pipeline.students.prepare import prepare_student

CLASSES = ("akiec", "mel", "nv")
NAMES = ["shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small", "timm:test_resnet", "timm:test_vit"]


def spread(model: nn.Module, size_px: int = 64) -> float:
    """How far answers to the same image are from each other in training mode; but for dropout, not at all."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    torch.manual_seed(0)
    noise = torch.randn(1, 3, size_px, size_px)
    with torch.no_grad():
        return float(torch.cat([model(noise) for _ in range(8)]).std(0).sum())


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_and_leaves_weights_and_names_alone(name: str) -> None:
    none, some, much = (build_student(name, 3, 64, seed=1, dropout=p) for p in (0.0, 0.2, 0.6))
    assert spread(none) == 0
    assert spread(some) > 0
    assert spread(much) > spread(some)
    assert none.state_dict().keys() == much.state_dict().keys()
    assert all(torch.equal(none.state_dict()[key], tensor) for key, tensor in much.state_dict().items())
    noise = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(none.eval()(noise), much.eval()(noise))


@pytest.mark.parametrize("name", ["resnet18", "timm:test_resnet"])
def test_a_program_of_a_student_with_dropout_answers_as_one_without(
    name: str, card_of: Callable[..., StudentCard]
) -> None:
    dropping = build_student(name, 3, 64, seed=1, dropout=0.5)
    program = torchscript.load_program(torchscript.to_bytes(dropping, card_of(name)))
    noise = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(program(noise), build_student(name, 3, 64, seed=1).eval()(noise))


def test_without_the_option_an_architecture_keeps_its_own() -> None:
    own = [
        module.p for module in build_student("mobilenet_v3_small", 3, 64).modules() if isinstance(module, nn.Dropout)
    ]
    assert own == [0.2]


def one_of_each_family() -> list[str]:
    """The first name of every torchvision family."""
    firsts = {torchvision.models.get_model_builder(name).__module__: name for name in reversed(student_names())}
    return sorted(firsts.values())


@pytest.mark.parametrize("name", one_of_each_family())
def test_every_family_of_torchvision_takes_a_dropout(name: str) -> None:
    with _weightless():
        model = _construct(find_source(name), 7, 224)
    before = list(model.state_dict())
    set_head_dropout(model, name, 7, 0.375)
    assert any(getattr(module, "p", 0) == 0.375 for module in model.modules())
    assert list(model.state_dict()) == before


def test_a_users_own_dropouts_are_set(own: Callable[..., str]) -> None:
    assert prepare_student(own(), CLASSES, 32, dropout=0.1).module.drop.p == 0.1
    assert prepare_student(own(), CLASSES, 32).module.drop.p == 0.5


def test_a_users_model_without_dropout_is_told_to_have_one(own_with: Callable[..., str]) -> None:
    with pytest.raises(
        SettingError, match=r"my_model.py:build has no nn.Dropout whose probability could be set to 0.3"
    ):
        prepare_student(own_with(dropout="nn.Identity()"), CLASSES, 32, dropout=0.3)


def test_a_timm_model_that_ignores_its_drop_rate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.students.build._timm_dropout", lambda dropout: {})
    with pytest.raises(SettingError, match="timm:test_resnet ignores its drop rate in timm"):
        build_student("timm:test_resnet", 3, 64, dropout=0.5)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_probability_out_of_range_is_told(value: float) -> None:
    with pytest.raises(SettingError, match=rf"dropout must be in \[0, 1\), got {value}"):
        prepare_student("squeezenet1_1", CLASSES, 64, dropout=value)


def test_a_dropping_layer_is_the_layer_where_nothing_is_dropped() -> None:
    linear, inputs = nn.Linear(4, 3), torch.randn(5, 4)
    assert torch.equal(DroppingLinear(linear, 0.9).eval()(inputs), linear(inputs))
    assert torch.equal(DroppingLinear(linear, 0.0)(inputs), linear(inputs))
    assert DroppingLinear(linear, 0.5).weight is linear.weight
