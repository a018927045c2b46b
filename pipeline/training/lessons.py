"""What a student is shown and told: which view of which sample in which batch of an epoch, with label and soft target.

Draws from (seed, epoch, purpose) alone, so that an epoch is the same after a resume. Renders nothing.
N samples, M draws of an epoch, B batch, T tasks, K columns of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.errors import CacheMismatch
from data.samples import Sample
from data.view_batches import ViewBatch, ViewItem
from data.views import draw
from pipeline.process import derived_seed
from pipeline.targets import TeacherTargets, times_before, view_policy
from pipeline.tasks import UNLABELLED
from pipeline.training.config import TrainConfig
from pipeline.training.labels import class_counts, keep_labels
from pipeline.training.soft_targets import SoftTargets


@dataclass(frozen=True)
class EpochPlan:
    """One pass: the targets of its items are the numbers of their draws."""

    batches: Sequence[ViewBatch]
    sample_M: NDArray[np.int64]
    """The sample of each draw."""
    rows_M: NDArray[np.int64] | None
    """The row of the cache that each draw shows; None for fresh views."""


class Lessons:
    """The train images of one run."""

    def __init__(self, targets: TeacherTargets, config: TrainConfig) -> None:
        self._config = config
        keys = [sample.key for sample in targets.samples] if config.label_fraction < 1 else ()
        labels_NT = keep_labels(keys, targets.labels_NT, config.label_fraction, config.seed)
        if not config.teacher:  # an image without a label has nothing to teach then
            kept = np.flatnonzero((labels_NT != UNLABELLED).any(axis=1))
            targets, labels_NT = targets.subset(kept), labels_NT[kept]
        self.targets, self.labels_NT, self.tasks = targets, labels_NT, targets.tasks
        self._policy, self._soft = view_policy(targets.reader), SoftTargets(targets, config.target)
        _check_n_views(targets, config.n_views)

    @property
    def samples(self) -> Sequence[Sample]:
        """The samples, as `labels_NT` counts them."""
        return self.targets.samples

    @property
    def n_labelled(self) -> int:
        """How many samples have a label that is used."""
        return int((self.labels_NT != UNLABELLED).any(axis=1).sum())

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Task -> class name -> labelled samples."""
        return {
            task: dict(zip(names, class_counts(self.labels_NT[:, number], len(names)).tolist(), strict=True))
            for number, (task, names) in enumerate(self.tasks.items())
        }

    @property
    def mean_views(self) -> float:
        """Views that an image is shown in, on average; infinite for fresh ones."""
        if self._config.fresh_views:
            return float("inf")
        return float(self.targets.used_views(self._config.n_views).mean())

    def epoch(self, epoch: int) -> EpochPlan:
        """The plan of one epoch, from 0: batches of nearly equal size (a batch of one breaks batch norm)."""
        config = self._config
        generator = np.random.default_rng(derived_seed(config.seed, epoch, "order"))
        n_samples = len(self.targets.samples)
        if config.sampler == "balanced":
            drawn_M = np.sort(generator.choice(n_samples, n_samples, p=self._chances()))
        else:
            drawn_M = None
        sample_M = np.arange(n_samples) if drawn_M is None else drawn_M
        rows_M = None
        if config.fresh_views:
            items = self._fresh_items(epoch, sample_M)
        else:
            rows_M = self.targets.epoch_rows(epoch, config.seed, n_views=config.n_views, sample_M=drawn_M)
            items = self.targets.items(rows_M, sample_M)
        order = generator.permutation(n_samples)
        n_batches = min(-(-n_samples // config.batch_size), n_samples // 2)
        batches = [items.part(part) for part in np.array_split(order, n_batches)]
        return EpochPlan(batches, sample_M, rows_M)

    def told(self, plan: EpochPlan, draw_B: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """The soft targets of some draws: raw logits, float32 [B, K]; None for hard labels only."""
        if not self._config.teacher or plan.rows_M is None:
            return None
        return self._soft(plan.rows_M[draw_B])

    def _chances(self) -> NDArray[np.float64]:
        """Of being drawn, float64 [N]: each class equally often; a sample without a label as often as in `shuffle`.

        With several tasks the mean of what each of them asks for.
        """
        return np.mean([self._chances_of(number) for number in range(len(self.tasks))], axis=0)

    def _chances_of(self, task: int) -> NDArray[np.float64]:
        labels_N = self.labels_NT[:, task]
        n_samples = len(labels_N)
        counts = class_counts(labels_N, max(1, labels_N.max() + 1))
        share = counts.sum() / n_samples / max(1, (counts > 0).sum())
        of_class = share / np.maximum(counts, 1)
        return np.where(labels_N == UNLABELLED, 1 / n_samples, of_class[labels_N])

    def _fresh_items(self, epoch: int, sample_M: NDArray[np.int64]) -> ViewBatch:
        """Views drawn as the cache's were, by a stream of this run's own; the second draw of a sample is another."""
        seed, samples = derived_seed(self._config.seed, "fresh views"), self.targets.samples
        again_M = times_before(sample_M)

        def make(chosen: NDArray[np.int64]) -> list[ViewItem]:
            owners = [samples[owner] for owner in sample_M[chosen].tolist()]
            return [
                ViewItem(sample, draw(self._policy, sample.key, 1 + epoch + (times << 32), seed), number)
                for sample, times, number in zip(owners, again_M[chosen].tolist(), chosen.tolist(), strict=True)
            ]

        return ViewBatch(np.arange(len(sample_M)), make)


def _check_n_views(targets: TeacherTargets, n_views: int) -> None:
    if (fewest := int(targets.n_views_N.min())) < n_views:
        raise CacheMismatch(
            f"{targets.reader.path} has {fewest} views of some train images, this run asks for {n_views}: "
            f"add them by `softlabel cache build ... --views {n_views}`, or ask for fewer"
        )
