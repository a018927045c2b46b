"""Which images a report shows: the same ones whatever their order, none twice."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.evaluation import Answers
from pipeline.report.content import N_SHOWN, shown_samples

from .conftest import answers_of


def shuffled(answers: Answers, order: list[int]) -> Answers:
    assert answers.teacher_NC is not None
    return dataclasses.replace(
        answers,
        keys=tuple(answers.keys[n] for n in order),
        names=tuple(answers.names[n] for n in order),
        labels_N=answers.labels_N[order],
        student_NC=answers.student_NC[order],
        teacher_NC=answers.teacher_NC[order],
    )


def test_mistakes_disagreements_and_right_answers_are_chosen_as_they_say() -> None:
    """Images 1 and 2 are wrong, 2 more surely; of 3 and 4 the teacher says something else, of 4 more surely."""
    student = [[2, 0], [2, 0], [3, 0], [1, 0], [4, 0]]
    teacher = [[2, 0], [2, 0], [3, 0], [0, 1], [0, 4]]
    groups = shown_samples(answers_of([0, 1, 1, 0, 0], np.array(student), np.array(teacher)))
    assert [group.numbers for group in groups] == [(2, 1), (4, 3), (0,)]
    without = shown_samples(answers_of([0, 1, 1, 0, 0], np.array(student), None))
    assert [sorted(group.numbers) for group in without] == [[1, 2], [0, 3, 4]]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 99))
def test_the_choice_is_of_images_and_not_of_places(n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    answers = answers_of(
        generator.integers(0, 3, n).tolist(), generator.normal(size=(n, 3)), generator.normal(size=(n, 3))
    )
    order = generator.permutation(n).tolist()
    moved = shuffled(answers, order)
    groups = [[answers.keys[at] for at in group.numbers] for group in shown_samples(answers)]
    assert [[moved.keys[at] for at in group.numbers] for group in shown_samples(moved)] == groups
    shown = [key for group in groups for key in group]
    assert len(shown) == len(set(shown))
    assert all(0 < len(group) <= N_SHOWN for group in groups)
