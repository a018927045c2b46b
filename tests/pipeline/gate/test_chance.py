"""Permutation tests: what is near chance, what is a renaming, and what is merely weak."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score

from pipeline.gate.chance import MIN_GAIN, Renaming, adjusted_for_chance, chance_p_value, find_renaming

HAM = (33, 51, 110, 12, 111, 671, 14)
"""Images of each class in a tenth of HAM10000."""


def answers(
    share_CC: NDArray[np.float64], n_images: tuple[int, ...], seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(predicted, labels): of each class, so many images, answered with the probabilities of its row."""
    generator = np.random.default_rng(seed)
    said = [generator.choice(len(row), n, p=row) for row, n in zip(share_CC, n_images, strict=True)]
    return np.concatenate(said), np.repeat(np.arange(len(n_images)), n_images)


def recall(n_classes: int, right: float) -> NDArray[np.float64]:
    """A teacher that is right so often, and otherwise says any other class."""
    return np.eye(n_classes) * right + (1 - np.eye(n_classes)) * (1 - right) / (n_classes - 1)


def confused(n_classes: int, right: float, a: int, b: int, share: float = 0.5) -> NDArray[np.float64]:
    """The same, but of a's images this share is said as b, and of b's as a; the rest by their own name."""
    found = recall(n_classes, right)
    found[[a, b]] = 0
    found[[a, b], [b, a]], found[[a, b], [a, b]] = share, 1 - share
    return found


def named(found: Renaming | None) -> dict[int, int]:
    return {} if found is None else found.said_as


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(max_examples=30)
def test_adjusting_for_chance_is_what_scikit_learn_does(seed: int, n_classes: int) -> None:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), generator.integers(0, n_classes, 20)])
    said = generator.integers(0, n_classes, len(labels))
    adjusted = adjusted_for_chance(balanced_accuracy_score(labels, said), n_classes)
    assert adjusted == pytest.approx(balanced_accuracy_score(labels, said, adjusted=True))


def test_the_p_value_is_the_share_of_orders_that_are_as_good() -> None:
    """Of the 6 ways to give two labels of each class to four images, one is right everywhere, all score 0 or more."""
    labels = np.array([0, 0, 1, 1])
    assert chance_p_value(labels, labels) == pytest.approx(1 / 6, abs=0.05)
    assert chance_p_value(1 - labels, labels) == 1
    assert chance_p_value(labels, labels) == chance_p_value(labels, labels), "seeded"


def test_always_the_largest_class_is_chance_however_large_it_is() -> None:
    labels = np.repeat([0, 1, 2], [57, 30, 13])
    assert chance_p_value(np.zeros(100, int), labels) == 1


def test_a_little_knowledge_of_a_rare_class_is_found() -> None:
    said, labels = answers(np.array([[0.98, 0.02], [0.6, 0.4]]), (300, 30))
    assert chance_p_value(said, labels) < 0.01


@pytest.mark.parametrize("n_images", [(20,) * 7, HAM], ids=["even", "HAM10000"])
@pytest.mark.parametrize(
    ("kind", "share_CC"),
    [
        ("chance", recall(7, 1 / 7)), ("weak", recall(7, 0.3)), ("good", recall(7, 0.8)),
        ("confuses two", confused(7, 0.6, 0, 1)), ("confuses others", confused(7, 0.3, 2, 4)),
        ("always one", np.tile(np.eye(7)[5], (7, 1))),
        ("mostly one", 0.8 * np.tile(np.eye(7)[5], (7, 1)) + 0.2 * recall(7, 0.5)),
    ],
)  # fmt: skip
def test_a_teacher_that_is_merely_weak_is_not_called_renamed(
    kind: str, share_CC: NDArray[np.float64], n_images: tuple[int, ...]
) -> None:
    assert [named(find_renaming(*answers(share_CC, n_images, seed))) for seed in range(8)] == [{}] * 8


def test_a_class_that_is_said_as_another_one_way_is_not_renamed() -> None:
    """All of class 0 is said as 1, and 1 is said as 1: a bad prompt, not a swap."""
    share = recall(5, 0.7)
    share[0] = np.eye(5)[1]
    assert find_renaming(*answers(share, (60,) * 5)) is None


@pytest.mark.parametrize(
    ("right", "order", "n_images"),
    [
        (0.45, [1, 2, 3, 4, 5, 6, 0], HAM), (0.8, [1, 2, 3, 4, 0], (12,) * 5), (0.8, [1, 0], (40, 40)),
        (0.7, [0, 1, 2, 3, 5, 4, 6], HAM), (0.8, [1, 0, 2, 3, 4, 5, 6], (20,) * 7),
        (0.8, [1, 0, 3, 2, 4, 5, 6], (30,) * 7),
    ],
    ids=["whole list, weak", "whole list, few images", "two of two", "mel and nv", "two of seven", "two pairs"],
)  # fmt: skip
def test_a_permuted_class_list_is_found_with_its_names(
    right: float, order: list[int], n_images: tuple[int, ...]
) -> None:
    found = find_renaming(*answers(recall(len(order), right)[order], n_images, seed=1))
    assert found is not None
    assert found.said_as == {a: b for a, b in enumerate(order) if a != b}
    assert found.balanced_accuracy == pytest.approx(right, abs=0.12)
    gains = [as_other - as_own for as_other, as_own in found.shares.values()]
    assert sum(gains) / len(gains) >= MIN_GAIN


def test_too_few_images_show_no_renaming() -> None:
    assert find_renaming(np.array([1, 0, 1, 0]), np.array([0, 1, 0, 1])) is None


def test_classes_without_images_take_no_part() -> None:
    """Class 2 of 4 has no image; it is said for half of all, which renames nobody."""
    said, labels = answers(np.array([[0.5, 0, 0.5, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]]), (30, 30, 30))
    assert find_renaming(said, np.array([0, 1, 3])[labels]) is None
    swapped, labels = answers(np.array([[0, 0.8, 0.2, 0], [0.8, 0, 0.2, 0], [0, 0, 0.2, 0.8]]), (30, 30, 30))
    assert named(find_renaming(swapped, np.array([0, 1, 3])[labels])) == {0: 1, 1: 0}


def test_a_thousand_classes_take_seconds() -> None:
    said, labels = answers(recall(1000, 0.6), (10,) * 1000)
    order, started = np.random.default_rng(0).permutation(1000), time.perf_counter()
    assert find_renaming(said, labels) is None
    found = find_renaming(order[said], labels)
    assert found is not None
    assert len(found.said_as) > 900
    assert chance_p_value(said, labels) < 0.01
    assert time.perf_counter() - started < 20
