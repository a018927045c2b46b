"""A file, or a finished run -> the weights in it and the classes that they are for. Never builds a model.

No file can run code here: `weights_only=True`, safetensors, or TorchScript.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.card import StudentCard
from pipeline.errors import RunError, SettingError, first_line
from pipeline.formats import torchscript
from pipeline.formats.stored import is_stored_smaller
from pipeline.runs import RunFolder

_NESTED_IN = ("state_dict", "model_state_dict", "model")
READING_ERRORS = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, SafetensorError, pickle.UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Weights by name, and what is known of the classes of their last layer."""

    state: dict[str, Tensor]
    origin: str
    """For people: what they are and where they come from."""
    classes: tuple[str, ...] | None = None
    """Names of the outputs, in order; None where the source does not say."""


def read_weights(path: Path) -> Weights:
    """The weights of a run folder's best student or of a file; SettingError or RunError where there are none."""
    if path.is_dir():
        best = RunFolder(path).load_best()
        return Weights(best.weights, f"{best.card.student} of {path}", best.card.classes)
    if not path.is_file():
        raise SettingError(
            f"no such file or run folder: {path}; --init takes none, imagenet, a run of `softlabel train`, "
            "or a file of weights (.pt, .pth, .safetensors)"
        )
    if _is_torchscript(path):
        module, card = torchscript.load_any(path)
        if is_stored_smaller(module.state_dict()):
            raise SettingError(
                f"{path} was exported with --weights fp16 or int8, its norms are folded and its weights rounded: "
                "--init takes the run folder, or an export with --weights fp32"
            )
        return Weights(dict(module.state_dict()), str(path), None if card is None else card.classes)
    content = _load(path)
    return Weights(_state_of(content, path), str(path), _classes_of(content))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """A state dict (.safetensors, or what torch.save wrote, bare or in a checkpoint); SettingError for others."""
    return _state_of(_load(path), path)


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own words advise to load it with weights_only=False, which would run a stranger's code.
        raise SettingError(
            f"{path} holds no weights that can be loaded safely: it is no file of torch.save, or holds more than "
            "tensors and plain values; expected one of torch.save(model.state_dict(), FILE), or .safetensors"
        ) from error
    except READING_ERRORS as error:
        raise SettingError(f"{path} holds no weights that can be loaded safely: {first_line(error)}") from error


def _state_of(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _NESTED_IN:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise SettingError(f"{path} holds no state dict: save it by torch.save(model.state_dict(), FILE)")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _classes_of(content: Any) -> tuple[str, ...] | None:
    """The classes of a `best.pt` that was handed on without its folder."""
    card = content.get("card") if isinstance(content, Mapping) else None
    if not isinstance(card, str):
        return None
    try:
        return StudentCard.from_json(card).classes
    except RunError:
        return None


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
