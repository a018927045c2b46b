"""The name of a library's architecture -> an untrained student. Never trains, loads no weights, runs no file.

Any classifier of torchvision or timm. B batch, C classes, S pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torchvision
from torch import nn

from pipeline.errors import SettingError, first_line
from pipeline.students.dropout import check_dropout_acts, set_head_dropout
from pipeline.students.names import StudentSource, find_source, require_timm


def build_student(name: str, n_classes: int, size_px: int, seed: int = 0, *, dropout: float | None = None) -> nn.Module:
    """An untrained student: normalised float32 [B, 3, S, S] -> logits [B, C]; its weights depend on the seed alone.

    `dropout` is that of the classifier's input, None what the architecture has of itself; it changes neither weights
    nor the names of the state. Raises SettingError for an unknown name or a size that the architecture cannot take.
    """
    source = find_source(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _construct(source, n_classes, size_px, dropout)
        if dropout is not None and source.kind == "torchvision":
            set_head_dropout(model, source.name, n_classes, dropout)
        elif dropout and source.kind == "timm":
            check_dropout_acts(model, source.name, size_px)
    return model


def _construct(source: StudentSource, n_classes: int, size_px: int, dropout: float | None = None) -> nn.Module:
    if source.kind == "torchvision":
        return _construct_torchvision(source.model, n_classes, size_px)
    if source.kind == "timm":
        return construct_timm(source.model, size_px, num_classes=n_classes, **_timm_dropout(dropout))
    raise SettingError(f"{source.name} is a file: only the training that it is designed for runs it")


def _construct_torchvision(name: str, n_classes: int, size_px: int) -> nn.Module:
    options: dict[str, Any] = {"num_classes": n_classes}
    if name.startswith("vit_"):
        options["image_size"] = size_px
    elif name == "maxvit_t":
        options["input_size"] = (size_px, size_px)
    elif name in ("googlenet", "inception_v3"):
        # Without the auxiliary heads: they serve training alone, by a loss of their own.
        options |= {"aux_logits": False, "init_weights": True}
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    except (ValueError, AssertionError) as error:
        raise SettingError(f"{name} cannot be built for {size_px} px: {error}") from error
    return model


def _timm_dropout(dropout: float | None) -> dict[str, float]:
    return {} if dropout is None else {"drop_rate": dropout}


def construct_timm(model: str, size_px: int, **options: Any) -> nn.Module:
    """A timm model that TorchScript takes, for images of this size; `options` are those of `timm.create_model`."""
    timm = require_timm()
    try:
        described = timm.get_pretrained_cfg(model)
        if described is not None and described.fixed_input_size:
            options["img_size"] = size_px
        module: nn.Module = timm.create_model(model, scriptable=True, **options)
    except (ValueError, AssertionError, RuntimeError, TypeError, LookupError) as error:
        raise SettingError(f"timm cannot build {model} for {size_px} px: {first_line(error)}") from error
    return module


@contextlib.contextmanager
def _weightless() -> Iterator[None]:
    """Weights of modules made inside move to the meta device at once.

    Not `torch.device("meta")`, under which RegNet fails: it computes its widths with tensors.
    """
    register = nn.Module.register_parameter

    def without_storage(self: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        register(self, name, None if weight is None else nn.Parameter(weight.to("meta"), weight.requires_grad))

    nn.Module.register_parameter = without_storage  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def parameter_bytes(name: str, n_classes: int, size_px: int) -> int:
    """Bytes of all weights and buffers: a lower bound of the exported file. Of torchvision's, none is allocated."""
    source = find_source(name)
    # Some families of timm compute with their weights while they are built.
    with _weightless() if source.kind == "torchvision" else contextlib.nullcontext():
        return tensor_bytes(_construct(source, n_classes, size_px))


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of all weights and buffers of a model."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
