"""Which samples a student learns from, and which ones validate it; never test.

Reads no image and no row of a cache. Run: softlabel train DATA t.h5 -o RUN
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.errors import BadSamples
from data.samples import Sample, SampleSet
from data.splits import hold_out
from pipeline.targets import TeacherTargets


def split_off_validation(images: SampleSet, fraction: float, seed: int) -> tuple[list[Sample], list[Sample], str]:
    """(samples to learn from, samples to validate on, where the latter come from); test is never touched.

    `fraction` of train, drawn by class with `seed`, validates where the data has no val split. Images without any
    label are learned from, and validate nothing.
    """
    learners = images.of_split("train")
    if "val" in images.splits:
        _check_enough(learners, images)
        validators, source = [sample for sample in images.of_split("val") if sample.labels], "split val"
    else:
        chosen = hold_out(learners, fraction, seed)  # with all of their groups, labelled or not
        validators = [sample for sample in learners if sample.key in chosen and sample.labels]
        learners = [sample for sample in learners if sample.key not in chosen]
        _check_enough(learners, images)
        source = f"{fraction:.0%} of train, by class"
    _check_validates(validators, images)
    return learners, validators, source


def _check_enough(learners: Sequence[Sample], images: SampleSet) -> None:
    """BadSamples where there is a task in which nothing can be learned."""
    for task in images.classes:
        if len({sample.labels[task] for sample in learners if task in sample.labels}) < 2:
            raise BadSamples(
                f"{images.root} has too few train images{_of(task, images)}: {len(learners):,} without those for "
                "validation; expected at least two classes"
            )


def _check_validates(validators: Sequence[Sample], images: SampleSet) -> None:
    for task in images.classes:
        if not any(task in sample.labels for sample in validators):
            raise BadSamples(f"{images.root} has no val image with a label{_of(task, images)}: move some from train")


def _of(task: str, images: SampleSet) -> str:
    return f" of {task}" if len(images.classes) > 1 else ""


def check_left(targets: Mapping[str, TeacherTargets], images: SampleSet) -> None:
    """BadSamples where images that cannot be decoded were left out, and what is left is not enough."""
    _check_enough(targets["train"].samples, images)
    if not targets["val"].samples:
        raise BadSamples(f"{images.root} has no val image that can be decoded: replace them, or move some from train")
    _check_validates(targets["val"].samples, images)
