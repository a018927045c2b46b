"""Whether a file is what the course server takes, asked before it is sent. Sends nothing and changes nothing.

The contract: TorchScript in evaluation mode, under 25 MB, float32 [B, 3, 224, 224] -> logits [B, C], its classes in the
order of `sorted`. It is run by a process that has torch and nothing of softlabel.
B batch, C classes.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.card import StudentCard
from pipeline.course.contract import SIZE_PX, mended_card, problems_of
from pipeline.errors import CourseError, OverBudget, RunError
from pipeline.formats import torchscript
from pipeline.formats.fresh import FreshProcess
from pipeline.formats.names import format_of
from pipeline.students.budget import MB

_N_COMPARED = 4
_TOLERANCE = 1e-3
"""Of the largest logit (at least 1): what another batch size may change, as other kernels add in another order."""


@dataclass(frozen=True)
class CheckedFile:
    """A file that is by the contract, as it was when it was checked."""

    path: Path
    content: bytes = field(repr=False)
    n_classes: int
    classes: tuple[str, ...] | None
    """None: the file does not say."""
    runtime: str

    @property
    def sha256(self) -> str:
        """Of its bytes, in hex."""
        return hashlib.sha256(self.content).hexdigest()

    def to_text(self) -> str:
        """One line about it."""
        named = "classes not named in it" if self.classes is None else ", ".join(self.classes)
        return (
            f"{self.path}: {len(self.content) / MB:.2f} MB, runs in {self.runtime}, "
            f"{self.n_classes} finite logits an image; {named}"
        )


def check_file(path: str | Path, *, n_classes: int = 10, budget_mb: float = 25.0) -> CheckedFile:
    """The file, read once; RunError, OverBudget or CourseError say what the server would not take."""
    path = Path(path)
    again = f"`softlabel export RUN --for-course -o {shlex.quote(str(path.with_suffix('.pt')))}`"
    if path.is_dir():
        raise RunError(f"{path} is a folder: export the run first, `softlabel export {path} --for-course -o FILE.pt`")
    found = format_of(path)
    _check_size(path, budget_mb)
    if found != "torchscript":
        raise CourseError(f"{path} is {found}; the course server takes TorchScript: write it with {again}")
    content = path.read_bytes()
    card = torchscript.load_any(path)[1]
    if card is not None:
        _check_card(path, card, again)
    noise = np.random.default_rng(0).standard_normal((_N_COMPARED, 3, SIZE_PX, SIZE_PX), dtype=np.float32)
    _check_module(path, content, noise[:1], again)
    with FreshProcess(path, found) as process:
        alone, together = process.logits(noise[:1]), process.logits(noise)
        runtime = process.runtime
    _check_logits(path, alone, together, n_classes)
    if path.read_bytes() != content:
        raise CourseError(f"{path} changed while it was checked: run the same command again")
    return CheckedFile(path, content, n_classes, card.classes if card else None, runtime)


def _check_size(path: Path, budget_mb: float) -> None:
    n_bytes = path.stat().st_size
    if n_bytes >= budget_mb * MB:
        raise OverBudget(
            f"{path} has {n_bytes / MB:.2f} MB, the course server takes less than {budget_mb:g} MB: "
            "write it with `softlabel export RUN DATA --for-course --weights fp16 -o FILE`, or train a smaller student"
        )


def _check_card(path: Path, card: StudentCard, again: str) -> None:
    for problem in problems_of(card):
        mended_card(card)  # which says so where no export would help
        raise CourseError(f"{path} {problem}, as the course server has it: write it with {again}")


def _check_logits(path: Path, alone: NDArray[np.float32], together: NDArray[np.float32], n_classes: int) -> None:
    for found, n_images in ((alone, 1), (together, _N_COMPARED)):
        if found.shape != (n_images, n_classes):
            raise CourseError(
                f"{path} answers {n_images} image{'s' * (n_images > 1)} with shape {list(found.shape)}, expected "
                f"[{n_images}, {n_classes}]: train it on the course's classes, or say how many with --n-classes"
            )
    if not np.isfinite(together).all() or not np.isfinite(alone).all():
        raise CourseError(f"{path} answers noise with logits that are not finite: look at its training, train it anew")
    worst = float(np.abs(alone[0] - together[0]).max())
    if worst > _TOLERANCE * max(1.0, float(np.abs(together).max())):
        raise CourseError(
            f"{path} answers an image with other logits where it has others beside it (by {worst:.2g}): "
            "its rows must not mix, so look for statistics over the batch"
        )


def _check_module(path: Path, content: bytes, noise: NDArray[np.float32], again: str) -> None:
    """What the other process cannot tell, as it says eval() and float() for itself."""
    module = torchscript.load_program(content)
    if getattr(module, "training", False):  # a module of torch.jit.freeze has no such word, and is in evaluation mode
        raise CourseError(f"{path} is in training mode: call eval() before torch.jit.script, or write it with {again}")
    try:
        with torch.inference_mode():
            answer = module(torch.from_numpy(noise))
    except RuntimeError as error:
        last_line = str(error).strip().splitlines()[-1]  # above it, the program that was run
        raise RunError(f"{path} does not run on float32 {list(noise.shape)}: {last_line}") from error
    found = answer.dtype if isinstance(answer, torch.Tensor) else type(answer).__name__
    if found != torch.float32:
        raise CourseError(f"{path} answers with {found}, expected a tensor of torch.float32: write it with {again}")
