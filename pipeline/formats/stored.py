"""Weights that take fewer bytes in the file than float32, and are cast to float32 where the program uses them.

Only storage changes: the arithmetic stays float32, so any runtime that reads the file computes as before. Which weights
of a layer take how many bytes is decided here, for every format alike. Measured on students of 224 px (docs/deploy.md):
layers with few inputs to an output (the first one, depthwise ones) are a few per cent of the bytes and make most of the
error, so they keep more bits. O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

WEIGHTS = ("fp32", "fp16", "int8")
LEAST_FP16 = 32
"""Weights to an output that a layer must have for half precision."""
LEAST_INT8 = 64
"""And for 8 bits."""
_LAYERS = {"aten::conv2d", "aten::conv1d", "aten::_convolution", "aten::linear"}
"""What reads its weights [O, ...] from its second input."""
_NAME = "weight_"
"""What the weights of a stored program begin with, numbered."""
_FLOAT32 = 6
"""Of torch's numbers of types, as its programs write them."""


def stored_type(weight: Tensor, weights: str, *, is_layer: bool) -> str:
    """How a constant of a model is stored under a choice of WEIGHTS; only a layer's weights [O, ...] become int8."""
    if weight.dim() < 2 or weight.dtype != torch.float32:
        return "fp32"
    to_an_output = weight.numel() // max(1, len(weight))
    if weights == "int8" and is_layer and to_an_output >= LEAST_INT8:
        return "int8"
    fits = to_an_output >= LEAST_FP16 and bool(torch.isfinite(weight.half()).all())
    return "fp16" if weights != "fp32" and fits else "fp32"


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [O, ...], scale float32 [O]): symmetric, a scale for each output; weight is about int8 * scale.

    Jacob et al. 2018 (arXiv:1712.05877) eq. 1 with zero point 0, per channel as in Krishnamoorthi 2018
    (arXiv:1806.08342) sec. 3.
    """
    scale = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (weight / _along(scale, weight)).round().to(torch.int8), scale


def _along(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.dim() - 1))


def stored_program(model: nn.Module, weights: str) -> Any:
    """The TorchScript module of a module in evaluation mode, its weights stored so; what torch raises where it cannot.

    Norms are folded into the layers before them. Weights are parameters of the new module, and so move with `.to`.
    """
    frozen = torch.jit.freeze(torch.jit.script(model.eval()))
    holder = _Holder()
    kept = [_keep(holder, f"{_NAME}{number}", node, weights) for number, node in enumerate(_constants(frozen.graph))]
    program = torch.jit.script(holder.eval())
    graph = program.graph
    _copy_into(graph, frozen.graph)
    for node, parts in zip(_constants(graph), kept, strict=True):
        _read_from(graph, node, parts)
    return program


def is_stored_smaller(names: Iterable[str]) -> bool:
    """Whether these are the names of the weights of a `stored_program`."""
    return all(name.startswith(_NAME) for name in names)


class _Holder(nn.Module):
    """The weights of a program; what it computes is written into its graph."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def _constants(graph: Any) -> list[Any]:
    """The nodes of a graph that are a tensor, in order; but single numbers, which any device takes."""
    nodes = graph.findAllNodes("prim::Constant")
    return [node for node in nodes if node.output().type().kind() == "TensorType" and node.t("value").dim()]


def _keep(holder: nn.Module, name: str, node: Any, weights: str) -> tuple[str, ...]:
    """Give the holder a constant in as few bytes as it may take; the names that it stands under."""
    uses = node.output().uses()
    is_layer = bool(uses) and all(use.user.kind() in _LAYERS and use.offset == 1 for use in uses)
    weight = node.t("value").detach()
    stored = stored_type(weight, weights, is_layer=is_layer)
    parts = {name: weight}
    if stored == "fp16":
        parts = {name: weight.half()}
    elif stored == "int8":
        quantised, scale = quantise(weight)
        parts = {name: quantised, f"{name}_scale": _along(scale, weight)}
    for part, tensor in parts.items():
        holder.register_parameter(part, nn.Parameter(tensor, requires_grad=False))
    return tuple(parts)


def _copy_into(graph: Any, source: Any) -> None:
    """Let a graph of one input and one output compute what another one does."""
    copied = dict(zip(_names(source.inputs()), graph.inputs(), strict=True))
    for node in source.nodes():
        clone = graph.createClone(node, lambda value: copied[value.debugName()])
        graph.appendNode(clone)
        copied.update(zip(_names(node.outputs()), clone.outputs(), strict=True))
    (output,) = source.outputs()
    graph.eraseOutput(0)
    graph.registerOutput(copied[output.debugName()])


def _names(values: Any) -> list[str]:
    return [value.debugName() for value in values]


def _read_from(graph: Any, node: Any, parts: tuple[str, ...]) -> None:
    """Replace a constant by the holder's weights, as float32."""
    holder = next(graph.inputs())

    def add(kind: str, *inputs: Any) -> Any:
        operation = graph.create(
            kind, [item if isinstance(item, torch._C.Value) else constant(item) for item in inputs]
        )
        operation.insertBefore(node)
        return operation.output()

    def constant(item: Any) -> Any:
        value = graph.insertConstant(item)
        value.node().moveBefore(node)
        return value

    def read(part: str) -> Any:
        value = add("prim::GetAttr", holder)
        value.node().s_("name", part)
        value.setType(torch._C.TensorType.get())
        return value

    weight = read(parts[0])
    if len(parts) == 2 or node.t("value").is_floating_point():
        weight = add("aten::to", weight, _FLOAT32, False, False, None)
    if len(parts) == 2:
        weight = add("aten::mul", weight, read(parts[1]))
    weight.setType(node.output().type())
    node.output().replaceAllUsesWith(weight)
    node.destroy()
