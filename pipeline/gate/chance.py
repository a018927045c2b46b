"""Does a classifier know anything, and does it know the classes by other names? Permutation tests on its answers.

Knows arg-max answers and labels only. N samples, K classes that have samples.
Run: softlabel cache info t.h5 --data DATA
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_SHUFFLES = 499
"""Of the labels, for a p-value in steps of 0.002."""
MIN_GAIN = 0.3
"""Recall that the classes of a renaming must gain by it on average: merely confused classes gain about nothing.

Tried on simulated nearest-prototype teachers, with 1,002 images in HAM10000's proportions: at 0.3, 95 % of swapped
pairs are found where the teacher was over 0.6 balanced, 87 % over 0.45, and none of 400 unswapped teachers with noisy
prompts is stopped, 1.7 % where the noise is up to three times the classes' distance. At 0.2 these are 96, 90, 0, 3.8 %.
"""
_N_RENAMING_SHUFFLES = 99
"""Made only where a renaming is suspected: none may look as much like one, which is p <= 0.01."""
_MIN_Z = 3.29
"""Of the sign test of a renaming, one-sided p 0.0005: some dozens of pairs of classes may be confused."""


def adjusted_for_chance(balanced_accuracy: float, n_classes: int) -> float:
    """0 where always one class, or any, is answered; 1 where all is right (sklearn's `adjusted=True`)."""
    return (balanced_accuracy - 1 / n_classes) / (1 - 1 / n_classes)


def chance_p_value(predicted_N: NDArray[np.int64], labels_N: NDArray[np.int64], seed: int = 0) -> float:
    """How probable so good a balanced accuracy is where answers and labels have nothing to do with each other.

    (1 + shuffles of the labels that score no less) / (1 + shuffles) (Phipson & Smyth 2010); float in (0, 1].
    """
    weight = 1 / np.maximum(np.bincount(labels_N), 1)

    def score(labels: NDArray[np.int64]) -> float:
        return float(weight[labels[labels == predicted_N]].sum())

    generator, wanted = np.random.default_rng(seed), score(labels_N) - 1e-9
    n_as_good = sum(score(generator.permutation(labels_N)) >= wanted for _ in range(N_SHUFFLES))
    return (1 + n_as_good) / (1 + N_SHUFFLES)


@dataclass(frozen=True)
class Renaming:
    """Classes that are answered by the names of others, one to one."""

    said_as: dict[int, int]
    """Class -> the class whose name its images get."""
    shares: dict[int, tuple[float, float]]
    """Class -> shares of its images that get that name, and its own; each in [0, 1]."""
    balanced_accuracy: float
    """After the names are put right."""


@dataclass(frozen=True)
class _Cycle:
    """Some classes, each of which is said as the next, the last as the first."""

    members: list[int]
    z: float
    """Of the sign test: images said as the next class against those said as their own, each class weighing the same."""


def find_renaming(predicted_N: NDArray[np.int64], labels_N: NDArray[np.int64], seed: int = 0) -> Renaming | None:
    """The one-to-one renaming of classes that the answers show beyond doubt, or None.

    The best assignment of names to classes (by recall, each class weighing the same) falls into cycles. One is
    believed where its classes gain at least MIN_GAIN of recall on average, a sign test excludes that their two names
    are as often right, and shuffled labels, assigned in the same way, never look as convincing. That a name is said
    too often changes nothing: the bias cancels within a cycle. Classes without images are left as they are.
    """
    classes, label_N = np.unique(labels_N, return_inverse=True)
    number = np.full(max(predicted_N.max(), labels_N.max()) + 1, len(classes))
    number[classes] = np.arange(len(classes))
    said_N = number[predicted_N]
    counts = _counts(label_N, said_N, len(classes))
    suspected = [cycle for cycle in _cycles(counts) if cycle.z >= _MIN_Z]
    if not suspected:
        return None
    generator = np.random.default_rng(seed)
    shuffled = (_counts(generator.permutation(label_N), said_N, len(classes)) for _ in range(_N_RENAMING_SHUFFLES))
    highest = max(max((cycle.z for cycle in _cycles(found)), default=0.0) for found in shuffled)
    pairs = [
        (a, b)
        for cycle in suspected if cycle.z > highest
        for a, b in zip(cycle.members, [*cycle.members[1:], cycle.members[0]], strict=True)
    ]  # fmt: skip
    if not pairs:
        return None
    share = counts[:, :-1] / counts.sum(axis=1, keepdims=True)
    gain = sum(share[a, b] - share[a, a] for a, b in pairs)
    return Renaming(
        said_as={int(classes[a]): int(classes[b]) for a, b in pairs},
        shares={int(classes[a]): (float(share[a, b]), float(share[a, a])) for a, b in pairs},
        balanced_accuracy=float((np.trace(share) + gain) / len(classes)),
    )


def _counts(label_N: NDArray[np.int64], said_N: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """int64 [K, K + 1]: rows are classes, columns what was said; the last is every class that has no image."""
    width = n_classes + 1
    return np.bincount(label_N * width + said_N, minlength=n_classes * width).reshape(n_classes, width)


def _cycles(counts: NDArray[np.int64]) -> Iterator[_Cycle]:
    """The cycles of the best assignment whose classes gain MIN_GAIN on average."""
    from scipy.optimize import linear_sum_assignment

    n_K = counts.sum(axis=1)
    share = counts[:, :-1] / n_K[:, None]
    # What a class must gain is credited to its own name, so that the best assignment has no cycle which gains less.
    _, said_as = linear_sum_assignment(share + MIN_GAIN * np.eye(len(share)), maximize=True)
    left = set(np.flatnonzero(said_as != np.arange(len(share))).tolist())
    while left:
        members = [min(left)]
        while (following := int(said_as[members[-1]])) != members[0]:
            members.append(following)
        left.difference_update(members)
        at = np.array(members)
        as_other, as_own = counts[at, said_as[at]], counts[at, at]
        spread = np.sqrt(((as_other + as_own) / n_K[at] ** 2).sum())
        yield _Cycle(members, float(((as_other - as_own) / n_K[at]).sum() / spread))
