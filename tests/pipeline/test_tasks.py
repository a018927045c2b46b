"""Tasks side by side: columns, names, who means the same one, labels as numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.samples import Sample
from pipeline.tasks import UNLABELLED, Tasks, label_bytes, label_numbers, matching_task, stored_name, tasks_of

TWO = Tasks({"modality": ("CT", "MR"), "organ": ("chest", "foot", "head")})
names = st.text(min_size=1, max_size=5)
classes = st.lists(names, min_size=1, max_size=4, unique=True)


def image(**labels: str) -> Sample:
    return Sample(b"k" * 16, "", "", "train", labels)


@given(st.dictionaries(names, classes, min_size=1, max_size=4))
def test_every_column_belongs_to_one_class_of_one_task(found: dict[str, list[str]]) -> None:
    tasks = Tasks(found)
    owners = [(task, number) for task, where in tasks.columns.items() for number in range(len(tasks.outputs))[where]]
    assert [number for _, number in owners] == list(range(len(tasks.outputs)))
    assert [task for task, _ in owners] == [task for task, listed in found.items() for _ in listed]


def test_columns_are_called_by_class_and_of_several_tasks_by_both() -> None:
    assert tasks_of(("mel", "nv")).outputs == ("mel", "nv")
    assert TWO.outputs == ("modality: CT", "modality: MR", "organ: chest", "organ: foot", "organ: head")
    assert tasks_of(TWO) is TWO


@pytest.mark.parametrize(
    ("known", "task", "n_tasks", "said"),
    [
        (TWO, "organ", 2, "organ"),
        (TWO, "organ", 1, "organ"),
        (TWO, "dx", 1, None),
        ({"class": ("mel", "nv")}, "dx", 1, "class"),
        ({"class": ("mel", "nv")}, "dx", 2, None),
    ],
)
def test_a_task_is_matched_by_name_and_a_single_one_with_a_single_one(
    known: Tasks, task: str, n_tasks: int, said: str | None
) -> None:
    assert matching_task(known, task, n_tasks) == said


def test_a_cache_calls_a_single_task_class() -> None:
    assert stored_name("dx", {"dx": ("mel", "nv")}) == "class"
    assert [stored_name(task, TWO) for task in TWO] == ["modality", "organ"]


def test_labels_are_numbers_within_their_task_and_none_is_unlabelled() -> None:
    samples = [image(modality="MR", organ="head"), image(organ="chest"), image(modality="US"), image()]
    expected = [[1, 2], [UNLABELLED, 0], [UNLABELLED, UNLABELLED], [UNLABELLED, UNLABELLED]]
    np.testing.assert_array_equal(label_numbers(samples, TWO), expected)
    assert label_numbers([], TWO).shape == (0, 2)


def test_a_digest_tells_the_same_word_in_two_tasks_apart() -> None:
    yes = {"ulcer": ("no", "yes"), "itch": ("no", "yes")}
    assert label_bytes(image(ulcer="yes"), yes) != label_bytes(image(itch="yes"), yes)
    assert label_bytes(image(dx="mel"), {"dx": ("mel", "nv")}) == b"mel"
