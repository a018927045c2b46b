"""What a report says, as arrays and rows; and which images it shows. Draws nothing, reads no file.

N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.evaluation import Answers
from pipeline.metrics.full import probabilities
from pipeline.tasks import Tasks
from pipeline.training.verdicts import Verdict

N_SHOWN = 8
"""Images of each kind."""


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """All that a report is made of: the same content is the same page, to the byte."""

    name: str
    """Of the run."""
    rows: Sequence[Mapping[str, Any]]
    """Of metrics.csv, numbers or None; at least one."""
    settings: Mapping[str, Any]
    """Of config.json."""
    tasks: Tasks
    verdicts: Sequence[Verdict] = ()
    ids: Mapping[str, str] = field(default_factory=dict)
    """What the run depends on beside its settings, such as the cache's id: name -> value."""
    teacher: str = ""
    """What the teacher calls itself."""
    n_parameters: int | None = None
    exported_bytes: int | None = None
    teacher_parameters: int | None = None
    answers: Mapping[str, Answers] = field(default_factory=dict)
    """Task -> what student and teacher say of a split; without any there are curves and settings alone."""
    group_of: Mapping[bytes, str] | None = None
    """Content key -> lesion or patient, which intervals draw whole; None: each image is one."""
    pictures: Mapping[bytes, bytes] = field(default_factory=dict)
    """Content key -> JPEG, of the images that `shown_samples` chooses in any task; whoever gives any agreed to that."""


@dataclass(frozen=True)
class ShownSamples:
    """Some images that have something in common."""

    title: str
    remark: str
    """How they were chosen."""
    numbers: tuple[int, ...]
    """Places in the answers."""


def shown_samples(answers: Answers) -> list[ShownSamples]:
    """The most confident mistakes, the largest disagreements, a few right answers; no image twice.

    The choice depends on keys and answers, not on the order of the images.
    """
    by_key = np.array(sorted(range(len(answers.keys)), key=lambda n: answers.keys[n]), np.int64)
    student_NC = probabilities(answers.student_NC)[by_key]
    said_N = student_NC.argmax(axis=1)
    right_N = said_N == answers.labels_N[by_key]
    free_N = np.ones(len(by_key), bool)

    def choose(score_N: NDArray[np.float64], is_one_N: NDArray[np.bool_]) -> tuple[int, ...]:
        order = np.argsort(-score_N, kind="stable")
        chosen = order[(is_one_N & free_N)[order]][:N_SHOWN]
        free_N[chosen] = False
        return tuple(by_key[chosen].tolist())

    found = [
        ShownSamples(
            "Most confident mistakes",
            "Of the wrong answers, those with the highest probability. Bars are probabilities in percent.",
            choose(student_NC.max(axis=1), ~right_N),
        )
    ]
    if answers.teacher_NC is not None:
        teacher_NC = probabilities(answers.teacher_NC)[by_key]
        differs_N = np.abs(teacher_NC - student_NC).sum(axis=1) / 2
        is_other_N = teacher_NC.argmax(axis=1) != said_N
        found.append(
            ShownSamples(
                "Largest disagreements with the teacher",
                "Of the images that both answer differently, those with the largest total variation between the two.",
                choose(differs_N, is_other_N),
            )
        )
    shuffled_N = np.random.default_rng(0).random(len(by_key))
    found.append(ShownSamples("Some right answers", "Drawn at random, with a fixed seed.", choose(shuffled_N, right_N)))
    return [group for group in found if group.numbers]
