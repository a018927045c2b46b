"""What a student must be able to do, asked of models that cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pipeline.errors import SettingError
from pipeline.students.prepare import prepare_student

Own = Callable[..., str]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            "return self.head(x), x",
            r"answers two images in evaluation mode with a tuple, expected logits, float32 \[2, 3",
        ),
        ("return (self.head(x), x) if self.training else self.head(x)", r"in training mode with a tuple"),
        ("return x", r"with float32 \[2, 8\], expected logits, float32 \[2, 3\]"),
        ("return self.head(x).double()", r"with float64 \[2, 3\]"),
        ("return self.head(x) / 0", "NaN or infinity"),
        ("return self.head(x.detach()).detach()", "no weight that its answers depend on"),
        ("return self.haed(x)", r"fails in forward of 2 images of 32 px in evaluation mode: AttributeError: .*'haed'"),
        ("return self.head(x[:, :3])", r"RuntimeError: .*shapes cannot be multiplied .*\(my_model.py, line 15\)"),
    ],
)
def test_answers_that_are_no_logits_are_told(
    answer: str, message: str, own_with: Own, classes: tuple[str, ...]
) -> None:
    with pytest.raises(SettingError, match=message):
        prepare_student(own_with(answer=answer), classes, 32)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("return self.head(torch.as_tensor(x.detach().numpy()) + 0 * x)", "has no attribute or method 'numpy'"),
        ("return self.head(*[x])", "cannot statically infer the expected size of a list in this context"),
        ("return self.head(x) + ('a' in locals())", "Python builtin <built-in function locals> is currently not supp"),
    ],
)
def test_what_torchscript_cannot_take_is_told_in_its_words(
    answer: str, said: str, own_with: Own, classes: tuple[str, ...]
) -> None:
    with pytest.raises(SettingError, match=r"\(my_model.py, line 15\); write its forward with plain torch") as caught:
        prepare_student(own_with(answer=answer), classes, 32)
    assert f'my_model.py:build cannot be exported: TorchScript says "{said}' in str(caught.value).replace(
        "'Tensor' object ", ""
    )
    assert "\n" not in str(caught.value)


def test_what_cannot_be_copied_is_told(own_with: Own, classes: tuple[str, ...]) -> None:
    student = own_with(result="net = Net(n_classes)\n    net.lock = (x for x in [1])\n    return net")
    with pytest.raises(SettingError, match=r"fails in copy\.deepcopy, .*TypeError: cannot pickle 'generator'"):
        prepare_student(student, classes, 32)


def test_checking_leaves_the_model_and_the_callers_random_numbers_alone(own: Own, classes: tuple[str, ...]) -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    built = prepare_student(own(), classes, 32)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert built.module.training
    assert float(built.module.norm.running_mean.abs().max()) == 0, "no statistics of noise"
    assert all(parameter.grad is None for parameter in built.module.parameters())


@pytest.mark.parametrize(("name", "size_px"), [("alexnet", 32), ("timm:test_vit", 40)])
def test_a_size_that_the_architecture_does_not_take_is_told(name: str, size_px: int, classes: tuple[str, ...]) -> None:
    with pytest.raises(SettingError, match=rf"{name} cannot take images of {size_px} px .*another --student-size"):
        prepare_student(name, classes, size_px)


def test_a_model_that_keeps_a_tensor_between_two_passes_is_still_trained(
    own_with: Own, classes: tuple[str, ...]
) -> None:
    keeping = (
        "if self.kept.numel() == 0:\n            self.kept = torch.ones(8)\n        return self.head(x * self.kept)"
    )
    student = own_with(result="net = Net(n_classes)\n    net.kept = torch.zeros(0)\n    return net", answer=keeping)
    built = prepare_student(student, classes, 32)
    assert built.module.kept.numel() == 0, "the checks ran on a copy"
    built.module(torch.randn(2, 3, 32, 32)).sum().backward()
