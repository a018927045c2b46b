"""A finished student, from a run folder or an exported file alike: uint8 views -> logits. Never trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.card import StudentCard
from pipeline.errors import RunError, first_line
from pipeline.formats import reading
from pipeline.runs import Best, RunFolder
from pipeline.students.architecture import unpack_architecture
from pipeline.students.build import build_student
from pipeline.students.names import find_source
from pipeline.students.prepare import library


@dataclass(frozen=True)
class Student:
    """A loaded student and what it says of itself."""

    module: Any
    card: StudentCard
    device: str
    run: RunFolder | None
    """The run folder it came from; None for an exported file."""
    recipe_id: str = ""
    """The recipe of the cache it was trained on; empty for an exported file."""

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> NDArray[np.float32]:
        """Raw logits, float32 [B, C], of uint8 views [B, 3, S, S]."""
        result: NDArray[np.float32] = self.module(normalise(pixels, self.card, self.device)).float().cpu().numpy()
        return result

    def logits_of(self, batches: Iterable[Tensor]) -> NDArray[np.float32]:
        """Raw logits of many batches of uint8 views, float32 [N, C]."""
        return np.concatenate([self.logits(pixels) for pixels in batches])


def memory_format(device: str, learning: nn.Module | None = None) -> torch.memory_format:
    """channels_last (1.3 times faster on a CPU), but for MPS, where batch norm's backward pass fails with it.

    And but for a model that is to learn on a CPU and has strided 1x1 convolutions of fewer than 16 channels: oneDNN's
    backward pass of these writes past its memory, which ends the process (oneDNN issue 6035; seen with torch 2.15).
    """
    corrupts = device == "cpu" and learning is not None and any(map(_is_strided_1x1, learning.modules()))
    return torch.contiguous_format if device == "mps" or corrupts else torch.channels_last


def _is_strided_1x1(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or set(module.kernel_size) != {1}:
        return False
    return max(module.stride) > 1 and module.in_channels // module.groups < 16


def normalise(pixels: Tensor, card: StudentCard, device: str, layout: torch.memory_format | None = None) -> Tensor:
    """(RGB / 255 - mean) / std: uint8 [B, 3, S, S] -> float32 of the same shape, on the device.

    `layout` is that of the model, where it is not what `memory_format` says of the device alone.
    """
    layout = layout or memory_format(device)
    on_device = pixels.to(device, memory_format=layout, non_blocking=device == "cuda" and pixels.is_pinned())
    mean, std = _levels(tuple(card.mean), tuple(card.std), device, pixels.shape[-1])
    if layout != torch.channels_last:
        return on_device.float().sub_(mean[:3].view(1, 3, 1, 1)).div_(std[:3].view(1, 3, 1, 1))
    # As whole lines of an image, with as many means: three of them alone, again and again, take six times as long.
    n_images, _, height_px, width_px = pixels.shape
    lines = on_device.permute(0, 2, 3, 1).reshape(-1, 3 * width_px).float().sub_(mean).div_(std)
    return lines.view(n_images, height_px, width_px, 3).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _levels(mean: tuple[float, ...], std: tuple[float, ...], device: str, width_px: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in levels of 255, of each value of a line of pixels, float32 [3 * width]."""
    with torch.inference_mode(False):
        one, other = (torch.tensor(values, device=device).mul_(255).repeat(width_px) for values in (mean, std))
    return one, other


def load_student(path: str | Path, device: str) -> Student:
    """A run folder's best student, or an exported file; RunError for anything else."""
    path = Path(path)
    if not path.exists():
        raise RunError(
            f"no such run folder or model file: {path}; `softlabel train` makes one, `softlabel export` the other"
        )
    if not path.is_dir():
        module, card, device = reading.load(path, device)
        return Student(module, card, device, None)
    run = RunFolder(path)
    best = run.load_best()
    model = _rebuilt(run, best, device).to(device=device, memory_format=memory_format(device))
    return Student(model.eval(), best.card, device, run, best.ids["recipe_id"])


def _rebuilt(run: RunFolder, best: Best, device: str) -> Any:
    """The module of a run: by its name, or from the program that stands beside the weights."""
    card, weights, ids, architecture = best.card, best.weights, best.ids, best.architecture
    if architecture is not None:
        return unpack_architecture(architecture, weights, device)
    if find_source(card.student).kind == "file":  # which is never run to load what was trained
        raise RunError(f"{run.best} lacks the architecture of its student {card.student}: train this run anew")
    model = build_student(card.student, len(card.classes), card.size_px)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        here = library(find_source(card.student))
        trained_by = ids.get("student_library", here)
        advice = f"install {trained_by.replace(' ', '==')}" if trained_by != here else "it is damaged: train it anew"
        raise RunError(
            f"the weights of {run.best} are not those of a {card.student} of {here} ({first_line(error)}): {advice}"
        ) from error
    return model
