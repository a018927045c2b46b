"""Students by name: what they weigh, whether they fit, and what is said when they do not."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from pipeline.card import StudentCard
from pipeline.errors import OverBudget, SettingError
from pipeline.formats import torchscript
from pipeline.students.budget import MB, _family, _largest_that_fits, check_budget, n_parameters
from pipeline.students.build import build_student, parameter_bytes, tensor_bytes
from pipeline.students.names import DEFAULT_STUDENT, student_names

CardOf = Callable[..., StudentCard]


def real_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def one_of_each_family() -> list[str]:
    """The first name of every torchvision family."""
    firsts = {torchvision.models.get_model_builder(name).__module__: name for name in reversed(student_names())}
    return sorted(firsts.values())


def test_every_classifier_of_torchvision_is_a_student() -> None:
    names = student_names()
    assert names == sorted(set(names))
    assert {DEFAULT_STUDENT, "mobilenet_v3_small", "efficientnet_b0", "resnet18", "vit_b_16"} <= set(names)
    assert not any("rcnn" in name or "quantized" in name or "deeplab" in name for name in names)
    assert len(one_of_each_family()) >= 15


@pytest.mark.parametrize("name", one_of_each_family())
def test_every_family_is_built_on_the_meta_device(name: str) -> None:
    """No weight is allocated: even the largest is weighed in an instant."""
    assert parameter_bytes(name, 7, 224) > 1_000_000


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mnasnet0_5", "squeezenet1_1", "mobilenet_v3_small"])
def test_bytes_without_weights_equal_the_bytes_of_real_ones(name: str) -> None:
    assert parameter_bytes(name, 5, 64) == real_bytes(build_student(name, 5, 64))
    assert parameter_bytes(name, 6, 64) > parameter_bytes(name, 5, 64)


def test_the_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    first = build_student("shufflenet_v2_x0_5", 3, 64, seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's own random numbers go on undisturbed"
    torch.manual_seed(99)
    again = build_student("shufflenet_v2_x0_5", 3, 64, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = build_student("shufflenet_v2_x0_5", 3, 64, seed=2).state_dict()
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])


@pytest.mark.parametrize("name", [DEFAULT_STUDENT, "mobilenet_v3_small"])
def test_a_student_answers_with_one_logit_a_class(name: str) -> None:
    model = build_student(name, 4, 64).eval()
    with torch.inference_mode():
        logits = model(torch.zeros(2, 3, 64, 64))
    assert logits.shape == (2, 4)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "near"),
    [("shufflenet_v2_x10", "shufflenet_v2_x1_0"), ("resnet-18", "resnet18"), ("mobilnet_v2", "mobilenet_v2")],
)
def test_a_misspelt_name_suggests_its_neighbour(name: str, near: str) -> None:
    with pytest.raises(SettingError, match=f"'{re.escape(name)}'; did you mean '{near}'") as caught:
        build_student(name, 3, 64)
    assert "list_models" in str(caught.value)


def test_a_name_like_no_other_is_refused_in_whole_sentences() -> None:
    with pytest.raises(SettingError, match=r"is called '\?\?\?'[.;:] ") as caught:
        build_student("???", 3, 64)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(("name", "size_px"), [("vit_b_16", 100), ("maxvit_t", 100)])
def test_a_size_that_the_architecture_cannot_take_is_refused(name: str, size_px: int) -> None:
    with pytest.raises(SettingError, match=f"{name} cannot be built for {size_px} px"):
        parameter_bytes(name, 3, size_px)


@pytest.fixture(scope="module")
def small(card_of: CardOf) -> tuple[nn.Module, StudentCard, int]:
    """A student that is quickly scripted, its card, the bytes of its file."""
    model, card = build_student("squeezenet1_1", 3, 64), card_of("squeezenet1_1")
    return model, card, len(torchscript.to_bytes(model, card))


def test_the_budget_is_of_the_very_bytes_of_the_file(small: tuple[nn.Module, StudentCard, int]) -> None:
    model, card, artefact_bytes = small
    assert check_budget(model, card, artefact_bytes / MB) == artefact_bytes
    with pytest.raises(OverBudget):
        check_budget(model, card, (artefact_bytes - 1) / MB)


@pytest.mark.parametrize(
    ("name", "budget_mb", "fitting"),
    [
        ("shufflenet_v2_x2_0", 10.0, "shufflenet_v2_x1_0"),
        ("mnasnet1_3", 5.0, "mnasnet0_5"),
        ("resnet18", 6.0, "shufflenet_v2_x1_0"),  # no ResNet is so small: the default's family instead
    ],
)
def test_a_refusal_names_the_largest_variant_that_really_fits(
    name: str, budget_mb: float, fitting: str, card_of: CardOf
) -> None:
    with pytest.raises(OverBudget, match=f"the budget is {budget_mb:g} MB") as caught:
        check_budget(build_student(name, 3, 64), card_of(name), budget_mb)
    found = re.search(r"--student (\w+)", str(caught.value))
    assert found is not None
    assert found[1] == fitting
    assert len(torchscript.to_bytes(build_student(fitting, 3, 64), card_of(fitting))) <= budget_mb * MB
    assert re.search(rf"{name} with 3 classes exports to [\d.]+ MB", str(caught.value))


def test_a_budget_too_small_for_everything_says_so(small: tuple[nn.Module, StudentCard, int]) -> None:
    with pytest.raises(OverBudget, match=r"nothing smaller is known, or raise --budget-mb"):
        check_budget(*small[:2], 0.1)


def test_a_refusal_never_names_the_refused_student_itself(small: tuple[nn.Module, StudentCard, int]) -> None:
    """Close to the budget the allowance for TorchScript decides: who is just too large must not be recommended."""
    just_short_mb = (small[2] - 1) / MB
    assert _largest_that_fits("squeezenet1_1", 3, 64, just_short_mb) != "squeezenet1_1"
    assert _largest_that_fits("squeezenet1_1", 3, 64, 25.0) in _family("squeezenet1_1")


def test_a_refusal_of_timm_names_one_of_torchvision_that_fits(card_of: CardOf) -> None:
    with pytest.raises(
        OverBudget, match=r"timm:resnet10t with 3 classes .*largest that fits is shufflenet_v2_x1_0: --st"
    ):
        check_budget(build_student("resnet10t", 3, 64), card_of("timm:resnet10t"), 6.0)


def test_a_refusal_of_a_users_model_says_how_many_parameters_fit(card_of: CardOf) -> None:
    model = nn.Linear(1000, 1000)
    said = r"net.py:build .* the budget is 2 MB; its 1,001,000 parameters are 4 bytes each, about 425,000 fit: make it "
    with pytest.raises(OverBudget, match=said):
        check_budget(model, card_of("net.py:build"), 2.0)
    fitting = nn.Linear(424, 1000)
    assert check_budget(fitting, card_of("net.py:build"), 2.0) > 424_000 * 4


def test_facts_of_a_student_are_those_of_its_tensors() -> None:
    model = build_student("squeezenet1_1", 3, 64)
    assert n_parameters(model) == sum(p.numel() for p in model.parameters())
    assert tensor_bytes(model) == real_bytes(model)


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit"])
def test_a_timm_model_is_weighed_as_it_is(name: str) -> None:
    assert parameter_bytes(name, 5, 64) == real_bytes(build_student(name, 5, 64))


def test_weighing_a_student_does_not_end_its_training_mode(small: tuple[nn.Module, StudentCard, int]) -> None:
    model, card, _ = small
    check_budget(model.train(), card, 25.0)
    assert model.training
