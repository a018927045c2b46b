"""The exported file: TorchScript that loads with nothing but torch, and the card inside that says what it is.

TorchScript is deprecated in favour of torch.export but is what course servers take: all of it lives here.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shlex
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import RunError, first_line
from pipeline.tasks import Tasks

CARD_NAME = "softlabel.json"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

NOTICE = (
    "If the teacher is MedSigLIP, this model is a Model Derivative of HAI-DEF: HAI-DEF is provided under and subject "
    "to the Health AI Developer Foundations Terms of Use found at "
    "https://developers.google.com/health-ai-developer-foundations/terms. Not for Clinical Use."
)


@dataclass(frozen=True, kw_only=True)
class StudentCard:
    """All that a student's user must know: stands in the run folder and in the exported file."""

    student: str
    tasks: Mapping[str, tuple[str, ...]]
    """Task -> class names. Each has a column in the model's output, those of the first task first."""
    size_px: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Input = (RGB / 255 - mean) / std, per channel; normalising is not part of the model."""
    std: tuple[float, ...] = IMAGENET_STD
    geometry: str
    """`warp` or `pad`: how an image becomes a square."""
    cache_id: str
    """The cache whose views it was trained on."""
    taught: bool
    """False for a baseline that saw the same views with hard labels only."""
    teacher: str
    """What the teacher called itself when its cache was built."""
    notice: str = NOTICE

    @cached_property
    def every_task(self) -> Tasks:
        """The tasks with their columns."""
        return Tasks(self.tasks)

    @property
    def classes(self) -> tuple[str, ...]:
        """What the output columns are called, in order: by class; where there are several tasks, `task: class`."""
        return self.every_task.outputs

    def to_json(self) -> str:
        """The card as JSON text."""
        return json.dumps({**asdict(self), "classes": self.classes}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> StudentCard:
        """The inverse; RunError for anything else."""
        try:
            fields: dict[str, Any] = json.loads(text)
            fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
            classes = fields.pop("classes")
            tasks = fields["tasks"] if "tasks" in fields else {fields.pop("task"): classes}  # an older version's
            return cls(**{**fields, "tasks": {task: tuple(names) for task, names in tasks.items()}})
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise RunError(f"the model's card is damaged: {error}") from error


# Scripted, these return (logits, auxiliary logits) even without their auxiliary heads.
_SEVERAL_OUTPUTS = ("googlenet", "inception_v3")


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


def to_bytes(model: nn.Module, card: StudentCard) -> bytes:
    """The exported file of a student, float32 weights, evaluation mode."""
    model = copy.deepcopy(model).eval()
    several = card.student in _SEVERAL_OUTPUTS
    return program(_FirstOutput(model) if several else model, {CARD_NAME: card.to_json()})


def program(model: nn.Module, extra_files: dict[str, str] | None = None) -> bytes:
    """TorchScript of a module as it is, weights and all; what torch raises where it cannot."""
    buffer = io.BytesIO()
    with _deprecation_expected():
        torch.jit.save(torch.jit.script(model), buffer, _extra_files=extra_files)
    return buffer.getvalue()


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
    if not path.is_file():
        raise RunError(f"no such model file: {path}; make one with `softlabel export RUN -o {shlex.quote(str(path))}`")
    if not zipfile.is_zipfile(path):
        raise RunError(f"{path} is not an exported model; make one with `softlabel export RUN -o student_model.pt`")
    with _deprecation_expected():
        try:
            # Through a buffer: torch's own file reader does not take every path of every system.
            module = torch.jit.load(io.BytesIO(path.read_bytes()), map_location=device, _extra_files=extra)
        except (RuntimeError, ValueError) as error:
            raise RunError(f"{path} is not a TorchScript model: {first_line(error)}") from error
    text = extra[CARD_NAME]
    card = StudentCard.from_json(text.decode() if isinstance(text, bytes) else text) if text else None
    return module.eval(), card
