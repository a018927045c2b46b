"""Class probabilities of single image files, by a run folder's student or an exported one. Never trains.

Run: softlabel predict student_model.pt IMAGE...
B batch, K columns of all tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax

from data.decode import read_image
from data.errors import BadImage
from data.views import CLEAN_ROW, render
from pipeline.inference import load_student
from pipeline.process import resolve_device

_BATCH_SIZE = 64


@dataclass(frozen=True)
class Prediction:
    """What a student says of one image."""

    path: str
    labels: dict[str, str]
    """Task -> its most probable class."""
    probabilities: dict[str, float]
    """Class, of several tasks `task: class` -> softmax of the task's raw logits, in [0, 1]."""

    @property
    def label(self) -> str:
        """The most probable class of the one task there is."""
        (label,) = self.labels.values()
        return label


def predict(model: str | Path, paths: Sequence[str | Path], *, device: str = "auto") -> list[Prediction]:
    """A Prediction for each image file, in order. Raises BadImage or RunError."""
    if folders := [path for path in paths if Path(path).is_dir()]:
        raise BadImage(f"{folders[0]} is a folder: name image files, such as {Path(folders[0]) / '*.jpg'}")
    student = load_student(model, resolve_device(device))
    tasks = student.card.every_task
    predictions = []
    for start in range(0, len(paths), _BATCH_SIZE):
        chunk = paths[start : start + _BATCH_SIZE]
        views = [render(read_image(path), CLEAN_ROW, student.card.size_px, student.card.geometry) for path in chunk]
        logits_BK = student.logits(torch.stack(views)).astype(float)
        parts = [softmax(logits_BK[:, columns], axis=1) for columns in tasks.columns.values()]
        for path, *rows in zip(chunk, *parts, strict=True):
            labels = {task: tasks[task][int(row.argmax())] for task, row in zip(tasks, rows, strict=True)}
            probabilities = dict(zip(tasks.outputs, np.concatenate(rows).tolist(), strict=True))
            predictions.append(Prediction(str(path), labels, probabilities))
    return predictions
