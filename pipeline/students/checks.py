"""Whether a model can be a student at all: takes images of this size, answers with logits, learns, is exportable.

Asked before the first step. Never trains; the model, its mode and the caller's random numbers stay as they are.
B batch, C classes, S pixels.
"""

from __future__ import annotations

import copy
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.errors import SettingError, first_line
from pipeline.formats import torchscript
from pipeline.students.architecture import evaluated
from pipeline.students.from_file import user_errors
from pipeline.students.names import StudentSource

_PLACE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def check_input_size(model: nn.Module, name: str, size_px: int) -> None:
    """Raise SettingError where the architecture cannot take images of this size."""
    try:
        evaluated(model, torch.zeros(1, 3, size_px, size_px))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise SettingError(
            f"{name} cannot take images of {size_px} px ({first_line(error)}): choose another --student-size"
        ) from error


def check_answers(model: nn.Module, source: StudentSource, n_classes: int, size_px: int) -> None:
    """Raise SettingError where two images do not give float32 logits [2, C], or nothing of the model would learn."""
    noise = torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        with _errors_of(source, "copy.deepcopy, by which the moving average of its weights starts"):
            trained = copy.deepcopy(model)
        with _errors_of(source, f"forward of 2 images of {size_px} px in evaluation mode"):
            answers = evaluated(trained, noise)
        _check_logits(answers, source, n_classes, "in evaluation mode")
        trained.train()
        with _errors_of(source, f"forward of 2 images of {size_px} px in training mode"):
            answers = trained(noise)
        _check_logits(answers, source, n_classes, "in training mode")
        if answers.requires_grad:
            with _errors_of(source, "backward"):
                answers.sum().backward()
    if all(parameter.grad is None for parameter in trained.parameters()):
        raise SettingError(f"{source.name} has no weight that its answers depend on: nothing could learn")


def _errors_of(source: StudentSource, what: str) -> AbstractContextManager[None]:
    return user_errors(source, what) if source.path is not None else nullcontext()


def _check_logits(answers: object, source: StudentSource, n_classes: int, mode: str) -> None:
    expected = f"expected logits, float32 [2, {n_classes}]"
    if not isinstance(answers, Tensor):
        raise SettingError(f"{source.name} answers two images {mode} with a {type(answers).__name__}, {expected}")
    kind = str(answers.dtype).removeprefix("torch.")
    if tuple(answers.shape) != (2, n_classes) or answers.dtype != torch.float32:
        raise SettingError(f"{source.name} answers two images {mode} with {kind} {list(answers.shape)}, {expected}")
    if not bool(answers.isfinite().all()):
        raise SettingError(f"{source.name} answers noise {mode} with NaN or infinity: it could learn nothing")


def check_exportable(model: nn.Module, source: StudentSource) -> None:
    """Raise SettingError with what TorchScript says where it cannot take the model: no student could leave the run."""
    try:
        torchscript.program(copy.deepcopy(model).eval())
    except Exception as error:
        place = _PLACE.search(str(error))
        where = f" ({Path(place['file']).name}, line {place['line']})" if place else ""
        advice = "write its forward with plain torch operations" if source.path else "choose another student"
        raise SettingError(
            f'{source.name} cannot be exported: TorchScript says "{_said(error)}"{where}; {advice}'
        ) from error


def _said(error: Exception) -> str:
    """What TorchScript complains of: its first line, unless that is only the signature of what it complains of."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = lines[1] if len(lines) > 1 and "->" in lines[0] and lines[0].endswith(":") else lines[0]
    return said.rstrip(":.")
