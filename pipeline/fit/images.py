"""The images of a fit: which are learnt from, which validate, as what views they are shown.

Never loads a model. Test is never touched. Run: softlabel teacher fit DATA --from MODEL -o DIR
N samples, B batch, T tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import BadSamples
from data.samples import Sample, SampleSet
from data.view_batches import ViewItem
from data.views import CLEAN_ROW, ViewPolicy, draw
from pipeline.bad_images import find_bad_files, refuse_or_tell
from pipeline.process import derived_seed
from pipeline.tasks import Tasks, label_bytes, label_numbers
from pipeline.training.held_out import split_off_validation

POLICY = ViewPolicy()


@dataclass(frozen=True)
class FitImages:
    """The samples of a fit, all of which can be decoded."""

    learn: list[Sample]
    val: list[Sample]
    val_source: str
    """Where the validation images come from, for people."""
    tasks: Tasks

    def labels(self, samples: Sequence[Sample]) -> NDArray[np.int64]:
        """The number of each sample's class in each task, int64 [N, T]; UNLABELLED where it has none."""
        return label_numbers(samples, self.tasks)

    def epoch_batches(self, epoch: int, batch_size: int, seed: int) -> list[list[ViewItem]]:
        """Every image once, in random order, as its view `epoch + 1`, in batches of nearly equal size.

        The target of an item is its sample's number.
        """
        order = np.random.default_rng(derived_seed(seed, epoch, "order")).permutation(len(self.learn))
        items = [ViewItem(self.learn[i], draw(POLICY, self.learn[i].key, epoch + 1, seed), i) for i in order.tolist()]
        parts = np.array_split(np.arange(len(items)), self.n_batches(batch_size))
        return [[items[i] for i in part] for part in parts]

    def n_batches(self, batch_size: int) -> int:
        """How many batches an epoch has."""
        return -(-len(self.learn) // batch_size)

    def val_batches(self, batch_size: int) -> list[list[ViewItem]]:
        """The clean view of every validation image, in order."""
        items = [ViewItem(sample, CLEAN_ROW, number) for number, sample in enumerate(self.val)]
        return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]

    def digest(self) -> str:
        """sha256 over keys and labels of both groups: the same images in the same roles."""
        digest = hashlib.sha256()
        for group in (self.learn, self.val):
            digest.update(len(group).to_bytes(8, "little"))
            for sample in group:
                digest.update(sample.key + label_bytes(sample, self.tasks))
        return digest.hexdigest()


def choose_images(images: SampleSet, *, val_fraction: float, seed: int, skip_bad_images: bool) -> FitImages:
    """Train learns; val validates, or a part of train, by class, where there is no val. All are decoded once.

    Raises BadImage listing every file that is no image, unless they are to be skipped; BadSamples where too few are
    left.
    """
    learn, val, where = split_off_validation(images, val_fraction, seed)
    bad = find_bad_files([*learn, *val])
    refuse_or_tell(bad, len(learn) + len(val), "the fit has not started", skip=skip_bad_images)
    paths = {file.path for file in bad}
    learn, val = ([sample for sample in group if sample.path not in paths] for group in (learn, val))
    learn = [sample for sample in learn if sample.labels]
    tasks = Tasks(images.classes)
    if any(len({s.labels[task] for s in learn if task in s.labels}) < 2 for task in tasks) or not val:
        raise BadSamples(
            f"{images.root} has too few images: {len(learn):,} to learn from and {len(val):,} to validate on "
            f"({where}); expected at least two classes in train and one image in val"
        )
    return FitImages(learn, val, where, tasks)
