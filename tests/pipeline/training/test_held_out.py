"""Who learns and who validates: never test, never two sides of a group, never an image without a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from data.errors import BadSamples
from data.samples import Sample, SampleSet
from pipeline.training.held_out import split_off_validation


def image(number: int, split: str = "train", group: str = "", **labels: str) -> Sample:
    return Sample(number.to_bytes(16, "big"), "", f"{number}.png", split, labels, group)


def image_set(samples: Sequence[Sample]) -> SampleSet:
    tasks = sorted({task for sample in samples for task in sample.labels})
    classes = {task: tuple(sorted({s.labels[task] for s in samples if task in s.labels})) for task in tasks}
    return SampleSet(Path("DATA"), tuple(samples), classes)


def of_two_classes(n: int, split: str = "train", start: int = 0) -> list[Sample]:
    return [image(start + number, split, kind=("mel", "nv")[number % 2]) for number in range(n)]


def test_a_val_split_validates_and_test_takes_no_part() -> None:
    samples = [*of_two_classes(20), *of_two_classes(6, "val", 100), *of_two_classes(6, "test", 200)]
    learners, validators, source = split_off_validation(image_set(samples), 0.15, seed=0)
    assert ({s.split for s in learners}, {s.split for s in validators}, source) == ({"train"}, {"val"}, "split val")


def test_without_one_a_part_of_train_validates_by_class() -> None:
    learners, validators, source = split_off_validation(image_set(of_two_classes(40)), 0.2, seed=3)
    assert len(learners) == 32
    assert sorted(sample.labels["kind"] for sample in validators) == ["mel"] * 4 + ["nv"] * 4
    assert source == "20% of train, by class"


def test_no_group_learns_and_validates_not_even_by_an_image_without_a_label() -> None:
    labelled = [image(n, group=f"patient {n // 4}", kind=("mel", "nv")[n // 4 % 2]) for n in range(80)]
    unlabelled = [image(1000 + n, group=f"patient {n}") for n in range(20)]
    learners, validators, _ = split_off_validation(image_set([*labelled, *unlabelled]), 0.15, seed=0)
    assert validators
    assert not {sample.group for sample in learners} & {sample.group for sample in validators}
    assert all(sample.labels for sample in validators)
    assert any(not sample.labels for sample in learners), "they have soft targets to learn from"


def test_images_without_a_label_validate_nothing() -> None:
    samples = [*of_two_classes(20), *of_two_classes(4, "val", 100), image(500, "val"), image(501)]
    learners, validators, _ = split_off_validation(image_set(samples), 0.15, seed=0)
    assert (len(learners), len(validators)) == (21, 4)


def test_each_task_needs_two_classes_to_learn_and_an_image_to_validate() -> None:
    train = [image(n, kind=("mel", "nv")[n % 2], sex="f") for n in range(8)]
    val = [image(100, "val", kind="mel", sex="m")]
    with pytest.raises(BadSamples, match=r"too few train images of sex: 8 .*; expected at least two classes"):
        split_off_validation(image_set([*train, *val]), 0.15, seed=0)
    train = [image(n, kind=("mel", "nv")[n % 2], sex=("f", "m")[n % 2]) for n in range(8)]
    with pytest.raises(BadSamples, match="no val image with a label of sex: move some from train"):
        split_off_validation(image_set([*train, image(100, "val", kind="mel")]), 0.15, seed=0)
