"""The architecture of a user's own student as bytes that load without its file: TorchScript without the weights.

A run folder carries them beside the weights, so that nobody who evaluates, exports or predicts runs a stranger's code.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import RunError, SettingError, first_line
from pipeline.formats import torchscript


def pack_architecture(model: nn.Module) -> Tensor:
    """Compressed TorchScript of the model with every weight 0, uint8 [bytes]: some kilobytes, whatever the model."""
    blank = copy.deepcopy(model).eval()
    with torch.no_grad():
        for tensor in blank.state_dict().values():
            tensor.zero_()
    return torch.frombuffer(bytearray(zlib.compress(torchscript.program(blank))), dtype=torch.uint8)


def unpack_architecture(architecture: Tensor, weights: Mapping[str, Tensor], device: str = "cpu") -> Any:
    """The module with these weights, in evaluation mode; RunError where the two do not belong together."""
    try:
        model = torchscript.load_program(zlib.decompress(architecture.numpy().tobytes()), device)
        # Buffers that are no part of the state came with the program, which no longer knows that they are none.
        missing, unexpected = model.load_state_dict(dict(weights), strict=False)
    except (zlib.error, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"the student's architecture is damaged ({first_line(error)}): train this run anew") from error
    lost = [*unexpected, *(name for name, _ in model.named_parameters() if name in missing)]
    if lost:
        raise RunError(f"the student's weights are not those of its architecture (first: {lost[0]})")
    return model.eval()


def check_architecture(model: nn.Module, architecture: Tensor, student: str, size_px: int) -> None:
    """SettingError where the packed architecture, with the model's weights, does not answer as the model does."""
    noise = torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    expected = evaluated(copy.deepcopy(model), noise)
    found = evaluated(unpack_architecture(architecture, model.state_dict()), noise)
    away = float((expected - found).abs().max())
    if not away <= 1e-4 * max(1.0, float(expected.abs().max())):
        raise SettingError(
            f"{student} answers otherwise as TorchScript than in Python (by {away:.2g} in a logit), so the exported "
            "file would not be what was trained: keep all state in parameters and buffers, forward in plain torch"
        )


@torch.no_grad()  # not inference_mode: what a model keeps from one forward pass to the next must serve training, too
def evaluated(model: Any, inputs: Tensor) -> Tensor:
    """The answers in evaluation mode, float32 [B, C]; the model's mode stays as it is."""
    was_training = model.training
    try:
        answers: Tensor = model.eval()(inputs)
    finally:
        model.train(was_training)
    return answers
