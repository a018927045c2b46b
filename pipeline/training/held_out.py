"""Which samples a student learns from, and which ones validate it; never test.

Reads no image and no row of a cache. Run: softlabel train DATA t.h5 -o RUN
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.errors import BadSamples
from data.samples import FOLDER_TASK, Sample, SampleSet
from data.splits import stratified_subset
from pipeline.targets import TeacherTargets


def split_off_validation(images: SampleSet, fraction: float, seed: int) -> tuple[list[Sample], list[Sample], str]:
    """(samples to learn from, samples to validate on, where the latter come from); test is never touched.

    `fraction` of train, drawn by class with `seed`, validates where the data has no val split.
    """
    learners = images.of_split("train")
    if "val" in images.splits:
        _check_enough(learners, images)
        return learners, images.of_split("val"), "split val"
    label_of = {sample.key: sample.labels[FOLDER_TASK] for sample in learners}
    chosen = stratified_subset(label_of, fraction, seed)
    rest = [sample for sample in learners if sample.key not in chosen]
    _check_enough(rest, images)
    validators = [sample for sample in learners if sample.key in chosen]
    return rest, validators, f"{fraction:.0%} of train, by class"


def _check_enough(learners: Sequence[Sample], images: SampleSet) -> None:
    if len({sample.labels[FOLDER_TASK] for sample in learners}) < 2:
        raise BadSamples(
            f"{images.root} has too few train images: {len(learners)} without those for validation; "
            "expected at least two classes"
        )


def check_left(targets: Mapping[str, TeacherTargets], images: SampleSet) -> None:
    """BadSamples where images that cannot be decoded were left out, and what is left is not enough."""
    _check_enough(targets["train"].samples, images)
    if not targets["val"].samples:
        raise BadSamples(f"{images.root} has no val image that can be decoded: replace them, or move some from train")
