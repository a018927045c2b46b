"""ONNX: the exported file that ONNX Runtime runs, without torch; its card stands in the metadata.

The batch is free, the side of the images is the student's. Never quantises activations: `onnx_int8.py` does.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.card import CARD_NAME, StudentCard
from pipeline.errors import RunError, SettingError, first_line
from pipeline.formats.names import NO_TELEMETRY
from pipeline.formats.stored import quantise, stored_type

INPUT, OUTPUT = "input", "logits"
SEAL_NAME = "softlabel.sha256"
_NO_SEAL = "0" * 64
_LAYERS = {"Conv", "Gemm"}
"""What reads its weights from its second input, [O, ...] but where a Gemm says `transB=0`."""


class OnnxModule:
    """Stands where a torch module would: float32 [B, 3, S, S] -> logits [B, K], on the CPU."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, inputs: Tensor) -> Tensor:
        (answer,) = self._session.run(None, {INPUT: inputs.cpu().contiguous().numpy()})
        return torch.from_numpy(answer)


def to_bytes(module: Any, card: StudentCard, weights: str = "fp32") -> bytes:
    """The exported file of a student in evaluation mode, stored as `pipeline.formats.stored` says."""
    model = to_model(module, card)
    _store(model.graph, weights)
    return _sealed(model)


def to_model(module: Any, card: StudentCard) -> Any:
    """The onnx.ModelProto of a student, card inside, float32; SettingError where ONNX has no words for it."""
    onnx, _ = _onnx(), _runtime()
    with torch.no_grad():  # else the copied weights of a program would be results of the others
        module = copy.deepcopy(module).eval().to(memory_format=torch.contiguous_format)
    noise = torch.zeros(2, 3, card.size_px, card.size_px)
    write = _write_program if isinstance(module, torch.jit.ScriptModule) else _write_module
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        try:
            write(module, noise, path)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, torch.onnx.errors.OnnxExporterError) as error:
            raise SettingError(
                f"{card.student} cannot be written as ONNX ({first_line(error)}): take --format torchscript"
            ) from error
        model = onnx.load(path)
    _forget_where_it_was_made(model)
    _add_card(model, card)
    return model


def with_card(content: bytes, card: StudentCard) -> bytes:
    """A model's bytes with the card inside, where a tool has dropped it."""
    model = _onnx().load_from_string(content)
    _forget_where_it_was_made(model)
    _add_card(model, card)
    return _sealed(model)


def _add_card(model: Any, card: StudentCard) -> None:
    del model.metadata_props[:]
    for name, text in ((CARD_NAME, card.to_json()), (SEAL_NAME, _NO_SEAL)):
        entry = model.metadata_props.add()
        entry.key, entry.value = name, text


def _sealed(model: Any) -> bytes:
    """A model's bytes with their SHA-256 inside, computed with zeros in its place: ONNX has no checksum of its own."""
    content: bytes = model.SerializeToString()
    before, name, after = content.rpartition(SEAL_NAME.encode())
    return before + name + after.replace(_NO_SEAL.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def _is_whole(content: bytes, seal: str) -> bool:
    before, name, after = content.rpartition(SEAL_NAME.encode())
    plain = before + name + after.replace(seal.encode(), _NO_SEAL.encode(), 1)
    return hashlib.sha256(plain).hexdigest() == seal


def _write_module(module: Any, noise: Tensor, path: Path) -> None:
    torch.onnx.export(
        module, (noise,), path, dynamo=True, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), verbose=False,
        external_data=False, input_names=[INPUT], output_names=[OUTPUT],
    )  # fmt: skip


def _write_program(program: Any, noise: Tensor, path: Path) -> None:
    """Of a TorchScript program, all that a run has of a user's own student: only the older exporter reads these."""
    torch.onnx.export(
        program, (noise,), path, dynamo=False, input_names=[INPUT], output_names=[OUTPUT],
        dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
    )  # fmt: skip


def load(path: Path) -> tuple[OnnxModule, StudentCard]:
    """(module, card) of an exported file; RunError where it is none."""
    onnxruntime = _runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        content = path.read_bytes()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise RunError(f"{path} is not an ONNX model: {first_line(error)}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    text = metadata.get(CARD_NAME)
    if not text:
        raise RunError(f"{path} has no {CARD_NAME} inside: it was not made by `softlabel export`")
    if not _is_whole(content, metadata.get(SEAL_NAME, "")):
        raise RunError(f"{path} is damaged (it is not as it was written): fetch it again, or export it anew")
    return OnnxModule(session), StudentCard.from_json(text)


def _forget_where_it_was_made(model: Any) -> None:
    """The exporter notes the source line of each operation, with the paths of this machine: a third of small files."""
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def _store(graph: Any, weights: str) -> None:
    """Replace the float32 weights of a graph by smaller ones, with an operation in front that casts them back."""
    if weights == "fp32":
        return
    from onnx import helper, numpy_helper

    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    casts = []
    for tensor in list(graph.initializer):
        if tensor.data_type != 1:  # FLOAT
            continue
        weight = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        is_layer = all(_is_layer(node, tensor.name) for node in readers.get(tensor.name, ()))
        stored = stored_type(weight, weights, is_layer=is_layer)
        if stored == "fp32":
            continue
        smaller, inputs = f"{tensor.name}/{stored}", [f"{tensor.name}/{stored}"]
        if stored == "fp16":
            arrays = {smaller: weight.half().numpy()}
            casts.append(helper.make_node("Cast", inputs, [tensor.name], to=1))
        else:
            quantised, scale = quantise(weight)
            arrays = {smaller: quantised.numpy(), f"{smaller}/scale": scale.numpy()}
            casts.append(helper.make_node("DequantizeLinear", [*arrays], [tensor.name], axis=0))
        graph.initializer.remove(tensor)
        graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])


def _is_layer(node: Any, name: str) -> bool:
    transposed = all(attribute.i for attribute in node.attribute if attribute.name == "transB")
    return node.op_type in _LAYERS and node.input[1] == name and transposed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of what they are themselves (deprecated, or new) and log each of their steps."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter asks for it)
    except ImportError as error:
        raise _lacking(error) from error
    return onnx


def _runtime() -> Any:
    os.environ.setdefault(NO_TELEMETRY, "1")  # read at its import: what runs here is nobody else's business
    try:
        import onnxruntime
    except ImportError as error:
        raise _lacking(error) from error
    return onnxruntime


def _lacking(error: ImportError) -> SettingError:
    return SettingError(f"ONNX files need {error.name}: pip install '.[onnx]'")
