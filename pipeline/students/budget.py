"""What a student weighs against the budget of its exported file, and what to take where it is too much.

Never trains and writes no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torchvision
from torch import nn

from pipeline.card import StudentCard
from pipeline.errors import OverBudget, SettingError
from pipeline.formats import torchscript
from pipeline.formats.stored import WEIGHTS
from pipeline.students.build import parameter_bytes, tensor_bytes
from pipeline.students.names import DEFAULT_STUDENT, find_source, student_names

MB = 1_000_000
"""Budgets are in megabytes of 1e6 bytes, of the exported file."""
_SCRIPT_FACTOR, _SCRIPT_BYTES = 1.03, 300_000
"""What TorchScript adds to the weights of torchvision's classifiers at most."""


def n_parameters(model: nn.Module) -> int:
    """Weights that learn; the statistics of batch norm are none."""
    return sum(parameter.numel() for parameter in model.parameters())


def check_budget(model: nn.Module, card: StudentCard, budget_mb: float) -> int:
    """The bytes of the exported file; OverBudget names the largest variant of the family that fits."""
    n_classes = len(card.classes)
    weights = tensor_bytes(model)
    # A model far over the budget is not worth scripting; one near it is measured exactly.
    artefact_bytes = weights if weights > budget_mb * MB else len(torchscript.to_bytes(model, card))
    if artefact_bytes <= budget_mb * MB:
        return artefact_bytes
    half = artefact_bytes / 2 / MB * 1.1
    raise OverBudget(
        f"{card.student} with {n_classes} classes exports to {artefact_bytes / MB:.1f} MB, the budget is "
        f"{budget_mb:g} MB; {_advice(model, card, budget_mb)}, or raise --budget-mb"
        + (f" and export it with --weights fp16 (about {half:.1f} MB)" if half <= budget_mb else "")
    )


@dataclass(frozen=True)
class Artefact:
    """What a student weighs as an exported file."""

    n_bytes: int
    is_exact: bool
    """False where it is an upper bound."""

    def share_of(self, budget_mb: float) -> str:
        """Both, for people."""
        at_most = "" if self.is_exact else "at most "
        n_mb = self.n_bytes / MB
        return f"{at_most}{n_mb:.1f} MB exported ({n_mb / budget_mb:.0%} of the budget of {budget_mb:g} MB)"


def weigh(model: nn.Module, card: StudentCard, budget_mb: float) -> Artefact:
    """What the exported file weighs, as exactly as the budget needs it; OverBudget as in `check_budget`."""
    if at_most := roughly_fits(model, card, budget_mb):
        return Artefact(at_most, is_exact=False)
    return Artefact(check_budget(model, card, budget_mb), is_exact=True)


def roughly_fits(model: nn.Module, card: StudentCard, budget_mb: float) -> int | None:
    """An upper bound of the exported file's bytes, if it is within the budget beyond doubt; else None.

    Costs nothing, where `check_budget` takes a third of a second to script the model: torchvision's classifiers can all
    be scripted, and what that adds to their weights is known.
    """
    at_most = int(tensor_bytes(model) * _SCRIPT_FACTOR) + _SCRIPT_BYTES
    is_known = find_source(card.student).kind == "torchvision"
    return at_most if is_known and at_most <= budget_mb * MB else None


def what_fits(module: Any, card: StudentCard, budget_mb: float) -> str:
    """Of a finished student that is too large: the ways of storing its weights, and the student to train instead."""
    sizes = {weights: len(torchscript.to_bytes(module, card, weights)) for weights in WEIGHTS[1:]}
    ways = [
        f"--weights {weights} as torchscript ({n_bytes / MB:.1f} MB)"
        for weights, n_bytes in sizes.items() if n_bytes < budget_mb * MB
    ]  # fmt: skip
    smaller = _largest_that_fits(card.student, len(card.classes), card.size_px, budget_mb)
    train = f"train --student {smaller}" if smaller else "train a smaller student"
    return f"what fits: {', '.join(ways)}; or {train}" if ways else train


def _advice(model: nn.Module, card: StudentCard, budget_mb: float) -> str:
    if find_source(card.student).kind == "file":
        at_most = max(0, int(budget_mb * MB - 300_000) // 4)
        return f"its {n_parameters(model):,} parameters are 4 bytes each, about {at_most:,} fit: make it narrower"
    fitting = _largest_that_fits(card.student, len(card.classes), card.size_px, budget_mb)
    return f"the largest that fits is {fitting}: --student {fitting}" if fitting else "nothing smaller is known"


def _largest_that_fits(name: str, n_classes: int, size_px: int, budget_mb: float) -> str | None:
    """Of the same torchvision family, else of the default student's."""
    for family in (_family(name), _family(DEFAULT_STUDENT)):
        bytes_of = {}
        for relative in family:
            try:
                bytes_of[relative] = parameter_bytes(relative, n_classes, size_px)
            except SettingError:
                continue
        most = {relative: n_bytes * _SCRIPT_FACTOR + _SCRIPT_BYTES for relative, n_bytes in bytes_of.items()}
        fitting = [relative for relative, n_bytes in most.items() if n_bytes <= budget_mb * MB]
        if fitting:
            return max(fitting, key=lambda relative: bytes_of[relative])
    return None


def _family(name: str) -> list[str]:
    """Torchvision's variants of one architecture; none of timm's, of which one module can make hundreds."""
    if name not in student_names():
        return []
    builder: Callable[[str], Any] = torchvision.models.get_model_builder
    return [other for other in student_names() if builder(other).__module__ == builder(name).__module__]
