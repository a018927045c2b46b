"""Made-up scores of the images of a folder, and tables of them as other people's programs write them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.samples import FOLDER_TASK, SampleSet, scan_folder


@dataclass
class Scores:
    """Logits of every image of a folder: random, but more for its own class."""

    images: SampleSet
    logits_NC: NDArray[np.float32]

    @property
    def names(self) -> list[str]:
        """Relative paths."""
        return [sample.name for sample in self.images.samples]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in `sorted()` order."""
        return self.images.classes[FOLDER_TASK]

    @property
    def probabilities_NC(self) -> NDArray[np.float64]:
        """softmax of the logits."""
        powers = np.exp(self.logits_NC.astype(np.float64))
        return powers / powers.sum(axis=1, keepdims=True)

    def table(self, values: NDArray[Any] | None = None) -> list[list[Any]]:
        """Header and rows of a CSV."""
        rows = zip(self.names, self.logits_NC if values is None else values, strict=True)
        return [["image", *self.classes], *([name, *row.tolist()] for name, row in rows)]


def made_up(data: Path) -> Scores:
    """The same ones at every call."""
    images = scan_folder(data)
    classes = images.classes[FOLDER_TASK]
    own = np.array([[sample.labels[FOLDER_TASK] == name for name in classes] for sample in images.samples])
    noise = np.random.default_rng(0).normal(size=own.shape)
    return Scores(images, (3 * own + noise).astype(np.float32))


def write_csv(path: Path, rows: Iterable[Sequence[Any]], **style: Any) -> Path:
    """A CSV file."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, **style).writerows(rows)
    return path
