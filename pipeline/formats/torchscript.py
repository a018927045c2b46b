"""TorchScript: the exported file that loads with nothing but torch, its card inside.

TorchScript is deprecated in favour of torch.export but is what course servers take: all of it lives here.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import GoogLeNet, Inception3

from pipeline.card import CARD_NAME, StudentCard
from pipeline.errors import RunError, first_line
from pipeline.formats.names import check_whole, format_of
from pipeline.formats.stored import stored_program

# Scripted, these return (logits, auxiliary logits) even without their auxiliary heads.
_SEVERAL_OUTPUTS = (GoogLeNet, Inception3)


class _FirstOutput(nn.Module):
    """Only for scripting: the logits of a model that returns several outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(inputs)[0]
        return logits


@contextlib.contextmanager
def _deprecation_expected() -> Iterator[None]:
    """torch.jit warns at every call that it is deprecated as a whole: known, see the top of this module."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        yield


def to_bytes(model: nn.Module, card: StudentCard, weights: str = "fp32") -> bytes:
    """The exported file of a student in evaluation mode; `weights` is one of `pipeline.formats.stored.WEIGHTS`."""
    return program(scriptable(copy.deepcopy(model).eval()), {CARD_NAME: card.to_json()}, weights)


def scriptable(model: nn.Module) -> nn.Module:
    """A module that answers with its logits alone when it is scripted: the very one, but for a few of torchvision's."""
    return _FirstOutput(model) if isinstance(model, _SEVERAL_OUTPUTS) else model


def program(model: nn.Module, extra_files: dict[str, str] | None = None, weights: str = "fp32") -> bytes:
    """TorchScript of a module as it is, weights and all; what torch raises where it cannot."""
    buffer = io.BytesIO()
    with _deprecation_expected():
        scripted = torch.jit.script(model) if weights == "fp32" else stored_program(model, weights)
        torch.jit.save(scripted, buffer, _extra_files=extra_files)
    return _without_debug_records(buffer)


def _without_debug_records(archive: io.BytesIO) -> bytes:
    """The archive without the source lines of each operation: no paths of this machine, and fewer bytes."""
    lean = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(lean, "w") as target:
        for member in source.infolist():
            if not member.filename.endswith(".debug_pkl"):
                member.extra = b""  # what padded it to where it stood
                target.writestr(member, source.read(member.filename))
    return lean.getvalue()


def load_program(content: bytes, device: str = "cpu") -> Any:
    """The module of such bytes; what torch raises where they are none."""
    with _deprecation_expected():
        return torch.jit.load(io.BytesIO(content), map_location=device)


def load(path: Path, device: str = "cpu") -> tuple[Any, StudentCard]:
    """(module: normalised float32 [B, 3, S, S] -> logits [B, C], card) of an exported file."""
    module, card = load_any(path, device)
    if card is None:
        raise RunError(f"{path} has no {CARD_NAME} inside: it was not made by `softlabel export`")
    return module, card


def load_any(path: Path, device: str = "cpu") -> tuple[Any, StudentCard | None]:
    """The same of any TorchScript file; without a card where it was not made by `softlabel export`."""
    extra = {CARD_NAME: ""}
    if (found := format_of(path)) != "torchscript":
        raise RunError(f"{path} is a file of {found}, and TorchScript is needed here: export it as that")
    with _deprecation_expected():
        try:
            # Through a buffer: torch's own file reader does not take every path of every system.
            module = torch.jit.load(io.BytesIO(path.read_bytes()), map_location=device, _extra_files=extra)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"{path} is not a TorchScript model: {first_line(error)}") from error
    text = extra[CARD_NAME]
    if not text:
        return module.eval(), None
    check_whole(path)
    return module.eval(), StudentCard.from_json(text.decode() if isinstance(text, bytes) else text)
