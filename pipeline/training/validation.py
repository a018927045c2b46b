"""The validation of a student after each epoch: the clean views of the images that it does not learn from.

Never trains, never reads test. N samples, B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.loaders import StudentLoader
from pipeline.inference import normalise
from pipeline.metrics import Agreement, Metrics, agreement, classification_metrics
from pipeline.targets import TeacherTargets
from pipeline.torchscript import StudentCard

_BATCH_SIZE = 128
_N_CHECKED = 8
"""Views of a batch that are compared with what the teacher saw."""
_KEPT_BYTES = 1_000_000_000
"""The clean views stay in memory where they are fewer."""


@dataclass(frozen=True)
class Validation:
    """A student on the validation images."""

    logits_NC: NDArray[np.float32]
    metrics: Metrics
    loss_nats: float
    """Mean cross-entropy of the labels."""
    agreement: Agreement
    """With the teacher's cached answers."""


class Validator:
    """The validation images of one run."""

    def __init__(self, targets: TeacherTargets, card: StudentCard, load: StudentLoader, device: str) -> None:
        self.targets, self._card, self._load, self._device = targets, card, load, device
        self._rows = targets.clean_rows()
        self.teacher_NC = targets.teacher_logits(self._rows)
        self._pixels: Tensor | None = None

    def __call__(self, model: nn.Module, check_interrupt: Callable[[], None]) -> Validation:
        """The model must be in evaluation mode."""
        with torch.inference_mode():
            logits_NC = torch.cat([
                model(normalise(pixels, self._card, self._device)).float().cpu()
                for pixels in self._clean_batches(check_interrupt)
            ])  # fmt: skip
        labels_N = self.targets.labels_N
        loss = torch.nn.functional.cross_entropy(logits_NC.double(), torch.from_numpy(labels_N))
        said = logits_NC.numpy()
        return Validation(
            said, classification_metrics(said, labels_N, self._card.classes), float(loss),
            agreement(said, self.teacher_NC),
        )  # fmt: skip

    def _clean_batches(self, check_interrupt: Callable[[], None]) -> Iterator[Tensor]:
        """The clean views, uint8 [B, 3, S, S]; kept in memory after the first time where they are few."""
        if self._pixels is not None:
            yield from self._pixels.split(_BATCH_SIZE)
            return
        items = self.targets.items(self._rows)
        batches = [items[start : start + _BATCH_SIZE] for start in range(0, len(items), _BATCH_SIZE)]
        kept: list[Tensor] | None = [] if len(items) * 3 * self._card.size_px**2 < _KEPT_BYTES else None
        for pixels, index_B in self._load(batches):
            checked = index_B[:_N_CHECKED].numpy()
            self.targets.check_pixels(pixels[:_N_CHECKED], checked, self._rows[checked])
            if kept is not None:
                kept.append(pixels)
            yield pixels
            check_interrupt()
        if kept is not None:
            self._pixels = torch.cat(kept)
