"""The validation of a student after each epoch: the clean views of the images that it does not learn from.

Never trains, never reads test. N samples, B batch, C classes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.loaders import StudentLoader
from pipeline.card import StudentCard
from pipeline.inference import normalise
from pipeline.metrics import Agreement, Metrics, agreement, classification_metrics
from pipeline.ranks import ALONE, Ranks
from pipeline.targets import TeacherTargets
from pipeline.tasks import UNLABELLED

_BATCH_SIZE = 128
_N_CHECKED = 8
"""Views of a batch that are compared with what the teacher saw."""
_KEPT_BYTES = 1_000_000_000
"""The clean views stay in memory where they are fewer."""


@dataclass(frozen=True)
class TaskValidation:
    """A student on the validation images that have a label in one task."""

    metrics: Metrics
    loss_nats: float
    """Mean cross-entropy of the labels."""
    agreement: Agreement
    """With the teacher's cached answers."""

    def row(self) -> dict[str, float]:
        """Its columns of metrics.csv."""
        return {
            "val_accuracy": self.metrics.accuracy, "val_balanced_accuracy": self.metrics.balanced_accuracy,
            "val_macro_f1": self.metrics.macro_f1, "val_loss": self.loss_nats,
            "val_agreement": self.agreement.top1, "val_kl": self.agreement.kl_nats,
        }  # fmt: skip


@dataclass(frozen=True)
class Validation:
    """A student on the validation images."""

    logits_NK: NDArray[np.float32]
    tasks: Mapping[str, TaskValidation]

    def is_finite(self) -> bool:
        """Whether the losses are numbers."""
        return all(math.isfinite(one.loss_nats) for one in self.tasks.values())


class Validator:
    """The validation images of one run, of which each of several ranks looks at its share."""

    def __init__(
        self, targets: TeacherTargets, card: StudentCard, load: StudentLoader, device: str, ranks: Ranks = ALONE
    ) -> None:
        self.targets, self._card, self._load, self._device = targets, card, load, device
        self._ranks = ranks
        self._shown = targets if ranks.is_alone else targets.subset(np.arange(len(targets.samples))[ranks.share(
            len(targets.samples))])  # fmt: skip
        self._rows = self._shown.clean_rows()
        self.teacher_NK = targets.teacher_logits(targets.clean_rows())
        self._pixels: Tensor | None = None

    def __call__(self, model: nn.Module, check_interrupt: Callable[[], None]) -> Validation:
        """The model must be in evaluation mode."""
        with torch.inference_mode():
            answers = [
                model(normalise(pixels, self._card, self._device)).float().cpu()
                for pixels in self._clean_batches(check_interrupt)
            ]
        mine_NK = torch.cat(answers).numpy() if answers else self.teacher_NK[:0]
        said_NK, labels_NT = np.concatenate(self._ranks.gather(mine_NK)), self.targets.labels_NT
        found = {}
        for number, (task, columns) in enumerate(self._card.every_task.columns.items()):
            labelled = np.flatnonzero(labels_NT[:, number] != UNLABELLED)
            found[task] = self._of_task(
                said_NK[labelled, columns], self.teacher_NK[labelled, columns], labels_NT[labelled, number], task
            )
        return Validation(said_NK, found)

    def alone(self) -> Validator:
        """The same images for one rank."""
        return self if self._ranks.is_alone else Validator(self.targets, self._card, self._load, self._device)

    def _of_task(
        self, said_NC: NDArray[np.float32], teacher_NC: NDArray[np.float32], labels_N: NDArray[np.int64], task: str
    ) -> TaskValidation:
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(said_NC).double(), torch.from_numpy(labels_N))
        metrics = classification_metrics(said_NC, labels_N, self._card.tasks[task])
        return TaskValidation(metrics, float(loss), agreement(said_NC, teacher_NC))

    def _clean_batches(self, check_interrupt: Callable[[], None]) -> Iterator[Tensor]:
        """The clean views, uint8 [B, 3, S, S]; kept in memory after the first time where they are few."""
        if self._pixels is not None:
            yield from self._pixels.split(_BATCH_SIZE)
            return
        items = self._shown.items(self._rows)
        batches = [items[start : start + _BATCH_SIZE] for start in range(0, len(items), _BATCH_SIZE)]
        kept: list[Tensor] | None = [] if len(items) * 3 * self._card.size_px**2 < _KEPT_BYTES else None
        with contextlib.closing(self._load(batches)) as loaded:
            for pixels, index_B in loaded:
                checked = index_B[:_N_CHECKED].numpy()
                self._shown.check_pixels(pixels[:_N_CHECKED], checked, self._rows[checked])
                if kept is not None:
                    kept.append(pixels)
                yield pixels
                check_interrupt()
        if kept:
            self._pixels = torch.cat(kept)
