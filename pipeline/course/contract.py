"""What the course server expects of a model, and how a student is brought into that form. Never trains, sends nothing.

The server warps an image to 224 x 224 px, normalises it by ImageNet's mean and std, and reads the logits in the order
of `sorted(os.listdir(folder of classes))`. Run: softlabel export RUN --for-course -o student_model.pt
B batch, C classes.
"""

# No postponed annotations: torch.jit.script reads those of a class as they are.
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.card import IMAGENET_MEAN, IMAGENET_STD, StudentCard
from pipeline.errors import CourseError
from pipeline.formats.torchscript import scriptable

SIZE_PX = 224
GEOMETRY = "warp"
BUDGET_MB = 25.0
"""A file must have less."""


class _ForCourse(nn.Module):
    """A student that takes ImageNet's normalisation in the place of its own, and answers in the order of `sorted`."""

    scale: Tensor
    shift: Tensor
    order: Tensor

    def __init__(self, module: Any, scale: Tensor, shift: Tensor, order: Tensor) -> None:
        super().__init__()
        self.module = scriptable(module)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.register_buffer("order", order)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.module(inputs * self.scale + self.shift)
        return logits.index_select(1, self.order)


def problems_of(card: StudentCard) -> Iterator[str]:
    """What is not as the server has it, in the order in which a student is made; `for_course` mends the last two."""
    names = next(iter(card.tasks.values()))
    if len(card.tasks) != 1:
        yield f"answers {len(card.tasks)} tasks, expected one"
    if card.size_px != SIZE_PX:
        yield f"was made for images of {card.size_px} px, expected {SIZE_PX}"
    if card.geometry != GEOMETRY:
        yield f"was made for images by '{card.geometry}', expected {GEOMETRY}"
    if not _is_normalised_so(card):
        yield "was made for another mean and std than ImageNet's"
    if list(names) != sorted(names):
        yield "has its classes in another order than sorted()"


def mended_card(card: StudentCard) -> StudentCard:
    """The card with ImageNet's normalisation and sorted classes; CourseError where that is not enough."""
    if len(card.tasks) == 1:
        task = card.every_task.only
        card = replace(card, mean=IMAGENET_MEAN, std=IMAGENET_STD, tasks={task: tuple(sorted(card.tasks[task]))})
    for problem in problems_of(card):
        raise CourseError(
            f"this student {problem}, as the course server has it: train one by "
            f"`softlabel train DATA CACHE -o RUN --student-size {SIZE_PX}`, one label, a cache of --geometry warp"
        )
    return card


def for_course(module: Any, card: StudentCard) -> tuple[Any, StudentCard]:
    """(module, card) by the contract, the very ones where they already are; CourseError where no export can mend it."""
    mended = mended_card(card)
    order = [card.classes.index(name) for name in mended.classes]
    if order == sorted(order) and _is_normalised_so(card):
        return module, mended
    mine, theirs = (np.array([one.mean, one.std]) for one in (card, mended))
    scale, shift = theirs[1] / mine[1], (theirs[0] - mine[0]) / mine[1]
    of_channels = [torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (scale, shift)]
    return _ForCourse(module, of_channels[0], of_channels[1], torch.tensor(order)).eval(), mended


def _is_normalised_so(card: StudentCard) -> bool:
    return np.allclose([*card.mean, *card.std], [*IMAGENET_MEAN, *IMAGENET_STD], rtol=0, atol=1e-6)
