"""The student of a run, from its name to a checked module with its first weights: the one call that a training makes.

Never trains. Run: softlabel train DATA t.h5 -o RUN --student my_model.py:build --init imagenet --dropout 0.2
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from pipeline.errors import RunError, SettingError
from pipeline.students.architecture import check_architecture, evaluated, pack_architecture, unpack_architecture
from pipeline.students.build import build_student
from pipeline.students.checks import check_answers, check_exportable, check_input_size
from pipeline.students.dropout import set_own_dropout
from pipeline.students.from_file import build_from_file
from pipeline.students.initial import initialise
from pipeline.students.names import StudentSource, find_source, require_timm

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuiltStudent:
    """An untrained student that takes these images, answers with these classes and can be exported."""

    module: nn.Module
    """Normalised float32 [B, 3, S, S] -> logits [B, C]; on the CPU."""
    source: StudentSource
    """Its `name` is what the card says."""
    size_px: int
    architecture: Tensor | None
    """What a run folder must carry to be loaded without the user's file, uint8 [bytes]; None of a library's model."""
    ids: dict[str, str]
    """`student_library` (such as "timm 1.0.19") or `student_sha256` of the file: belong into the ids of the run."""
    init_report: tuple[str, ...]
    """What was taken from where, and what was not; empty without --init."""

    def check_resumes(self, checkpoint: Mapping[str, Any]) -> None:
        """RunError where the user's file makes another model than that of the checkpoint; a changed file is said.

        Reads `model`, `ids` and `architecture` of the checkpoint. Answers are compared, not texts: a comment, or
        what only training uses, may change.
        """
        saved, own = checkpoint["model"], self.module.state_dict()
        name = self.source.name
        differing = [
            f"{key}: the run has {_shape(saved, key)}, {name} {_shape(own, key)}"
            for key in {**saved, **own}
            if _shape(saved, key) != _shape(own, key)
        ]
        if differing:
            more = f"\n  and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise RunError(
                f"{name} makes another model than the run's; restore it, or start a new run with another -o:\n  "
                + "\n  ".join(differing[:5]) + more
            )  # fmt: skip
        for key, value in self.ids.items():
            if (before := checkpoint["ids"].get(key, value)) != value:
                what = "has changed" if self.architecture is not None else f"was of {before}, is of {value}"
                log.warning("%s %s since the run began", name, what)
        if self.architecture is not None:
            self._check_same_answers(checkpoint["architecture"], saved)

    def _check_same_answers(self, architecture: Tensor, weights: Mapping[str, Tensor]) -> None:
        noise = torch.randn(2, 3, self.size_px, self.size_px, generator=torch.Generator().manual_seed(0))
        expected = evaluated(unpack_architecture(architecture, weights), noise)
        found = evaluated(unpack_architecture(self._packed(), weights), noise)
        if not torch.allclose(expected, found, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise RunError(
                f"{self.source.name} answers otherwise than when the run began, with the same weights: restore it, or "
                "start a new run with another -o"
            )

    def _packed(self) -> Tensor:
        assert self.architecture is not None
        return self.architecture


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(list(state[key].shape)) if key in state else "none"


def prepare_student(
    student: str, classes: Sequence[str], size_px: int, *, seed: int = 0, init: str = "none",
    dropout: float | None = None,
) -> BuiltStudent:  # fmt: skip
    """Build, initialise and check a student; `seed` alone decides what is random, `dropout` None leaves its own.

    SettingError or RunError says what is wrong with the name, the file, the weights, the size or the model.
    A resumed run passes init="none", and the checkpoint to `check_resumes`.
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise SettingError(f"dropout must be in [0, 1), got {dropout}")
    source, n_classes = find_source(student), len(classes)
    if source.kind == "file":
        module, digest = build_from_file(source, n_classes, size_px, seed)
        if dropout is not None:
            set_own_dropout(module, source.name, dropout)
        ids = {"student_sha256": digest}
    else:
        module = build_student(student, n_classes, size_px, seed, dropout=dropout)
        check_input_size(module, source.name, size_px)
        ids = {"student_library": library(source)}
    if source.kind != "torchvision":  # every classifier of torchvision is known to do both
        check_answers(module, source, n_classes, size_px)
        check_exportable(module, source)
    architecture = None
    if source.kind == "file":
        architecture = pack_architecture(module)
        check_architecture(module, architecture, source.name, size_px)
    report = initialise(module, init, source, classes, size_px)
    return BuiltStudent(
        module=module, source=source, size_px=size_px, architecture=architecture, ids=ids, init_report=tuple(report)
    )


def library(source: StudentSource) -> str:
    """The library that a student's code is of, and its version: "timm 1.0.19"."""
    module = torchvision if source.kind == "torchvision" else require_timm()
    return f"{source.kind} {module.__version__}"
