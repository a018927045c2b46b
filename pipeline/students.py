"""Students: a name -> an untrained classifier, and whether its exported file fits a budget.

Never trains, never loads weights. Any classifier of torchvision, by its torchvision name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torch import nn

from pipeline import torchscript
from pipeline.errors import OverBudget, SettingError, did_you_mean, first_line
from pipeline.torchscript import StudentCard
from pipeline.training.config import DEFAULT_STUDENT

MB = 1_000_000
"""Budgets are in megabytes of 1e6 bytes, of the exported file."""


def student_names() -> list[str]:
    """Every name that `build_student` takes."""
    return sorted(torchvision.models.list_models(module=torchvision.models))


def build_student(name: str, n_classes: int, size_px: int, seed: int = 0) -> nn.Module:
    """An untrained student: normalised float32 [B, 3, S, S] -> logits [B, C]; its weights depend on the seed alone.

    Raises SettingError for an unknown name or a size that the architecture cannot take.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _construct(name, n_classes, size_px)


def _construct(name: str, n_classes: int, size_px: int) -> nn.Module:
    if name not in student_names():
        raise SettingError(
            f"no torchvision classifier is called '{name}'{did_you_mean(name, student_names()) or '.'} "
            f'All names: python -c "import torchvision; print(torchvision.models.list_models())"'
        )
    options: dict[str, Any] = {"num_classes": n_classes}
    if name.startswith("vit_"):
        options["image_size"] = size_px
    elif name == "maxvit_t":
        options["input_size"] = (size_px, size_px)
    elif name in ("googlenet", "inception_v3"):
        # Without the auxiliary heads: they serve training alone, by a loss of their own.
        options |= {"aux_logits": False, "init_weights": True}
    try:
        return torchvision.models.get_model(name, weights=None, **options)
    except (ValueError, AssertionError) as error:
        raise SettingError(f"{name} cannot be built for {size_px} px: {error}") from error


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
    """Bytes of all weights and buffers, without allocating any of them: a lower bound of the exported file."""
    with _weightless():
        model = _construct(name, n_classes, size_px)
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def check_input_size(model: nn.Module, name: str, size_px: int) -> None:
    """Raise SettingError where the architecture cannot take images of this size."""
    was_training = model.training
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, size_px, size_px))
    except (RuntimeError, ValueError) as error:
        raise SettingError(
            f"{name} cannot take images of {size_px} px ({first_line(error)}): choose a larger --student-size"
        ) from error
    model.train(was_training)


def check_budget(model: nn.Module, card: StudentCard, budget_mb: float) -> int:
    """The bytes of the exported file; OverBudget names the largest variant of the family that fits."""
    name, n_classes = card.student, len(card.classes)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    # A model far over the budget is not worth scripting; one near it is measured exactly.
    artefact_bytes = weights if weights > budget_mb * MB else len(torchscript.to_bytes(model, card))
    if artefact_bytes <= budget_mb * MB:
        return artefact_bytes
    fitting = _largest_that_fits(name, n_classes, card.size_px, budget_mb)
    advice = f"the largest that fits is {fitting}: --student {fitting}" if fitting else "nothing smaller is known"
    raise OverBudget(
        f"{name} with {n_classes} classes exports to {artefact_bytes / MB:.1f} MB, the budget is {budget_mb:g} MB; "
        f"{advice}, or raise --budget-mb"
    )


def _largest_that_fits(name: str, n_classes: int, size_px: int, budget_mb: float) -> str | None:
    """Of the same torchvision family, else of the default student's. The 3 % are what TorchScript adds to weights."""
    for family in (_family(name), _family(DEFAULT_STUDENT)):
        bytes_of = {}
        for relative in family:
            try:
                bytes_of[relative] = parameter_bytes(relative, n_classes, size_px)
            except SettingError:
                continue
        fitting = [relative for relative, n_bytes in bytes_of.items() if n_bytes * 1.03 + 300_000 <= budget_mb * MB]
        if fitting:
            return max(fitting, key=lambda relative: bytes_of[relative])
    return None


def _family(name: str) -> list[str]:
    builder: Callable[[str], Any] = torchvision.models.get_model_builder
    return [other for other in student_names() if builder(other).__module__ == builder(name).__module__]
