"""Class probabilities of single image files, by a run folder's student or an exported one. Never trains.

Run: softlabel predict student_model.pt IMAGE...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    label: str
    """The most probable class."""
    probabilities: dict[str, float]
    """Class name -> softmax of the raw logits, in [0, 1]."""


def predict(model: str | Path, paths: Sequence[str | Path], *, device: str = "auto") -> list[Prediction]:
    """A Prediction for each image file, in order. Raises BadImage or RunError."""
    if folders := [path for path in paths if Path(path).is_dir()]:
        raise BadImage(f"{folders[0]} is a folder: name image files, such as {Path(folders[0]) / '*.jpg'}")
    student = load_student(model, resolve_device(device))
    predictions = []
    for start in range(0, len(paths), _BATCH_SIZE):
        chunk = paths[start : start + _BATCH_SIZE]
        views = [render(read_image(path), CLEAN_ROW, student.card.size_px, student.card.geometry) for path in chunk]
        for path, row in zip(chunk, softmax(student.logits(torch.stack(views)).astype(float), axis=1), strict=True):
            probabilities = {name: float(p) for name, p in zip(student.card.classes, row, strict=True)}
            predictions.append(Prediction(str(path), student.card.classes[int(row.argmax())], probabilities))
    return predictions
