"""Weights in fewer bytes: what becomes smaller, by how much it may be off, and that the program runs as before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.formats import torchscript
from pipeline.formats.stored import LEAST_FP16, LEAST_INT8, quantise, stored_type
from pipeline.students.build import build_student


@pytest.mark.parametrize(
    ("shape", "fp16", "int8"),
    [
        ((8, 3, 3, 3), "fp32", "fp32"),  # a first layer: 27 to an output
        ((58, 1, 3, 3), "fp32", "fp32"),  # depthwise
        ((58, 58, 1, 1), "fp16", "fp16"),
        ((58, 64, 1, 1), "fp16", "int8"),
        ((7, 1024), "fp16", "int8"),
        ((1024,), "fp32", "fp32"),  # a bias
    ],
)
def test_layers_with_few_weights_to_an_output_keep_more_bits(shape: tuple[int, ...], fp16: str, int8: str) -> None:
    weight = torch.randn(shape)
    assert [stored_type(weight, weights, is_layer=True) for weights in ("fp32", "fp16", "int8")] == ["fp32", fp16, int8]


def test_what_is_no_layer_never_becomes_int8() -> None:
    assert stored_type(torch.randn(7, 1024), "int8", is_layer=False) == "fp16"


def test_a_weight_beyond_the_range_of_half_precision_keeps_its_bits() -> None:
    weight = torch.full((4, LEAST_FP16), 70_000.0)
    assert stored_type(weight, "fp16", is_layer=True) == "fp32"


def test_integers_are_left_as_they_are() -> None:
    assert stored_type(torch.ones(9, 9, 9, dtype=torch.int64), "fp16", is_layer=True) == "fp32"


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 40), st.floats(1e-6, 1e6), st.integers(0, 2**16))
def test_no_weight_is_off_by_more_than_half_a_step_of_its_output(n_out: int, n_in: int, size: float, seed: int) -> None:
    weight = torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed)) * size
    quantised, scale = quantise(weight)
    assert quantised.dtype == torch.int8
    off = (quantised.float() * scale[:, None] - weight).abs()
    assert bool((off <= scale[:, None] * 0.5001).all())


def test_an_output_without_weights_stays_without() -> None:
    quantised, scale = quantise(torch.zeros(2, 3))
    assert not (quantised.float() * scale[:, None]).any()


def answers(program: bytes, inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return torchscript.load_program(program)(inputs)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1"])
def test_a_program_becomes_smaller_and_answers_nearly_the_same(name: str) -> None:
    model = build_student(name, 5, 64, seed=1).eval()
    inputs = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = model(inputs).detach()
    sizes, errors = [], []
    for weights in ("fp32", "fp16", "int8"):
        program = torchscript.program(model, weights=weights)
        sizes.append(len(program))
        errors.append(float((answers(program, inputs) - expected).norm() / expected.norm()))
    assert sizes[1] < 0.62 * sizes[0]
    assert sizes[2] < 0.75 * sizes[1]
    assert errors[0] < 1e-5
    assert 0 < errors[1] < 0.005
    assert 0 < errors[2] < 0.1


class TwoUses(nn.Module):
    """A matrix that is a layer's weight and is multiplied as it is, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(LEAST_INT8, LEAST_INT8, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) + inputs @ self.layer.weight


def test_a_matrix_that_is_used_twice_keeps_both_uses() -> None:
    model = TwoUses().eval()
    inputs = torch.randn(3, LEAST_INT8)
    found = answers(torchscript.program(model, weights="int8"), inputs)
    torch.testing.assert_close(found, model(inputs).detach(), atol=5e-3, rtol=5e-3)


def test_weights_are_parameters_that_move_with_the_module() -> None:
    program = torchscript.load_program(torchscript.program(nn.Linear(LEAST_FP16, 8).eval(), weights="fp16"))
    found = {str(parameter.dtype): parameter.numel() for parameter in program.parameters()}
    assert found == {"torch.float16": 8 * LEAST_FP16, "torch.float32": 8}
    assert program.training is False
    moved = program.double()  # as `.to(device)` does, for which there is only the one here
    assert {parameter.dtype for parameter in moved.parameters()} == {torch.float64}
    assert moved(torch.zeros(2, LEAST_FP16)).shape == (2, 8)
