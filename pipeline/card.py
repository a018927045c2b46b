"""The card of a student: all that whoever uses it must know. It stands in the run folder and in every exported file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pipeline.errors import RunError
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
