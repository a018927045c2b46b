"""Does an exported file answer as the checkpoint that it was made from? Asked in a process of its own, on real images.

Images that the student did not learn from come first: on those that it knows by heart nearly everything agrees.
Never trains, writes no file. Run: softlabel export RUN DATA -o student_model.pt --weights fp16
B batch, N images, K columns of all tasks, C classes of a task.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from data.loaders import StudentLoader, default_workers
from data.options import ScanOptions
from data.samples import Sample
from data.view_batches import ViewItem
from data.views import CLEAN_ROW
from pipeline.answers import caches_of, in_words_of
from pipeline.bad_images import decodable, opened, scan_like
from pipeline.card import StudentCard
from pipeline.errors import RunError
from pipeline.formats.fresh import FreshProcess
from pipeline.inference import Student, normalise
from pipeline.metrics.bootstrap import Interval, draw_resamples, interval, weighted_scores
from pipeline.metrics.classification import classification_metrics

N_COMPARED = 1_000
"""Real images, where there are that many; all of those that the student did not learn from, up to twice as many."""
LEVEL = 0.9
"""Share of the resamples that the interval of the difference in macro F1 holds."""
_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How far an exported file's answers are those of its checkpoint."""

    n_images: int
    n_unseen: int
    """Those of them that the student did not learn from."""
    n_agreeing: int
    """Those with the same most probable class, in every task."""
    largest_difference: float
    """Of a logit, on these images."""
    macro_f1: float | None
    """Of the checkpoint, mean over the tasks; None without labels."""
    macro_f1_difference: float | None
    """Exported file less checkpoint."""
    interval: Interval | None
    """90 % of that difference, by paired bootstrap over the images' groups; None for fewer than two."""

    @property
    def agreement(self) -> float:
        """Share of the images, in [0, 1]."""
        return self.n_agreeing / self.n_images

    def is_enough(self, least: float) -> bool:
        """Whether at most a share of 1 - least disagrees; one image always may, as one of 900 is more than 0.1 %."""
        return self.n_images - self.n_agreeing <= max(1, math.floor((1 - least) * self.n_images + 1e-9))

    def to_text(self) -> str:
        """One line for people."""
        n_other, n_learned = self.n_images - self.n_agreeing, self.n_images - self.n_unseen
        learned = f" ({n_learned:,} of which it learned from)" if n_learned else ""
        text = f"{n_other:,} of {self.n_images:,} images{learned} get another class than by the checkpoint"
        text += f", {self.agreement:.2%} agree"
        if self.macro_f1_difference is None:
            return f"{text}; DATA has no label that the student knows, so no macro F1"
        if not n_other:
            return f"{text}; macro F1 {self.macro_f1:.4f} of both"
        between = f", 90 % interval {self.interval.low:+.4f} to {self.interval.high:+.4f}" if self.interval else ""
        return f"{text}; macro F1 {self.macro_f1:.4f} {self.macro_f1_difference:+.4f}{between}"


class RealImages:
    """The images of DATA that a student and its exported file are asked about, and those that show it what is usual."""

    def __init__(self, student: Student, data: str | Path, scan: ScanOptions) -> None:
        cache = opened(caches_of(student, None))
        images = in_words_of(student.card.every_task, scan_like(cache, data, scan))
        usable = decodable(cache, images.samples, skip=scan.skip_bad_images)
        learned = (student.run.learned_keys() if student.run else None) or frozenset()
        self._student = student
        by_key = sorted(usable, key=lambda sample: sample.key)
        self._unseen = [sample for sample in by_key if sample.key not in learned]
        self._learned = [sample for sample in by_key if sample.key in learned]
        if not by_key:
            raise RunError(f"{data} has no image to compare the exported file on")

    def compared(self) -> list[Sample]:
        """Those of `compare`."""
        unseen = self._unseen[: 2 * N_COMPARED]
        return unseen + self._learned[: max(0, N_COMPARED - len(unseen))]

    def usual(self, n: int) -> Iterator[NDArray[np.float32]]:
        """Batches of images that the student learned from, normalised [B, 3, S, S]; others where there are none."""
        for pixels in self._pixels((self._learned or self._unseen)[:n], "calibrate"):
            yield normalise(pixels, self._student.card, "cpu").contiguous().numpy()

    def compare(self, process: FreshProcess, card: StudentCard) -> Fidelity:
        """Ask both; `card` is the exported file's, which may name the same classes in another order."""
        samples = self.compared()
        order = [self._student.card.classes.index(name) for name in card.classes]
        mine, theirs = [], []
        for pixels in self._pixels(samples, "compare"):
            mine.append(self._student.logits(pixels)[:, order])
            theirs.append(process.logits(normalise(pixels, card, "cpu").contiguous().numpy()))
        mine_NK, theirs_NK = np.concatenate(mine), np.concatenate(theirs)
        if theirs_NK.shape != mine_NK.shape or not np.isfinite(theirs_NK).all():
            raise RunError(f"the exported file answers with {theirs_NK.shape} or with numbers that are not finite")
        agree_N = np.ones(len(samples), bool)
        for columns in card.every_task.columns.values():
            agree_N &= mine_NK[:, columns].argmax(1) == theirs_NK[:, columns].argmax(1)
        unseen = {sample.key for sample in self._unseen}
        return Fidelity(
            n_images=len(samples),
            n_unseen=sum(sample.key in unseen for sample in samples),
            n_agreeing=int(agree_N.sum()),
            largest_difference=float(abs(mine_NK - theirs_NK).max()),
            **_difference_in_f1(samples, card, mine_NK, theirs_NK),
        )

    def _pixels(self, samples: Sequence[Sample], doing: str) -> Iterator[Tensor]:
        items = [ViewItem(sample, CLEAN_ROW, i) for i, sample in enumerate(samples)]
        batches = [items[start : start + _BATCH_SIZE] for start in range(0, len(items), _BATCH_SIZE)]
        card = self._student.card
        loader = StudentLoader(card.size_px, card.geometry, default_workers("cpu"))
        yield from (
            pixels for pixels, _ in
            tqdm(loader(batches), total=len(batches), desc=doing, unit="batch", leave=False, disable=None)
        )  # fmt: skip


def _difference_in_f1(
    samples: Sequence[Sample], card: StudentCard, mine_NK: NDArray[np.float32], theirs_NK: NDArray[np.float32]
) -> dict[str, Any]:
    """Of each task's labelled images, mean over the tasks; resamples of whole groups, the same ones for both."""
    scores, differences, resampled = [], [], []
    for task, columns in card.every_task.columns.items():
        numbers = [number for number, sample in enumerate(samples) if sample.labels.get(task) in card.tasks[task]]
        if not numbers:
            continue
        labels_N = np.array([card.tasks[task].index(samples[number].labels[task]) for number in numbers])
        answers = [logits[numbers, columns] for logits in (mine_NK, theirs_NK)]
        mine, theirs = (classification_metrics(logits, labels_N, card.tasks[task]).macro_f1 for logits in answers)
        scores.append(mine)
        differences.append(theirs - mine)
        groups = draw_resamples([samples[number].group or samples[number].key.hex() for number in numbers])
        if groups is not None:
            of_mine, of_theirs = (
                groups.scores(weighted_scores(logits, labels_N, auroc=False))["macro_f1"] for logits in answers
            )
            resampled.append(of_theirs - of_mine)
    whole = len(resampled) == len(scores) > 0
    return {
        "macro_f1": float(np.mean(scores)) if scores else None,
        "macro_f1_difference": float(np.mean(differences)) if scores else None,
        "interval": interval(np.mean(resampled, axis=0), LEVEL) if whole else None,
    }
