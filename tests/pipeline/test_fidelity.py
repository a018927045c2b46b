"""How far an exported file answers as its checkpoint: on which images, by how much, and whether that is enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.options import ScanOptions
from pipeline import fidelity as module
from pipeline.errors import RunError
from pipeline.fidelity import Fidelity, RealImages
from pipeline.inference import Student, load_student


class Elsewhere:
    """Stands where the process with the exported file does: the very student, its logits changed."""

    def __init__(self, student: Student, change: NDArray[np.float32] | float = 0.0) -> None:
        self.student, self.change = student, change

    def logits(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            found: NDArray[np.float32] = self.student.module(torch.from_numpy(inputs)).numpy()
        return found + self.change


@pytest.fixture(scope="module")
def student(tiny_run: Path) -> Student:
    return load_student(tiny_run, "cpu")


@pytest.fixture(scope="module")
def images(student: Student, tiny_data: Path) -> RealImages:
    return RealImages(student, tiny_data, ScanOptions())


def test_the_very_student_agrees_with_itself(images: RealImages, student: Student) -> None:
    found = images.compare(Elsewhere(student), student.card)
    assert (found.n_images, found.n_agreeing) == (60, 60)
    assert found.n_unseen == 30
    assert found.largest_difference < 1e-4
    assert found.macro_f1_difference == 0
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (0, 0)


def test_a_file_that_says_one_class_only_is_seen_through(images: RealImages, student: Student) -> None:
    change = np.array([100, 0, 0, 0, 0], np.float32)
    found = images.compare(Elsewhere(student, change), student.card)
    assert found.n_agreeing < 60
    assert found.macro_f1 is not None
    assert found.macro_f1_difference == pytest.approx(1 / 15 - found.macro_f1)  # 2/5/(1 + 1/5) / 5 classes
    assert found.interval is not None
    assert found.interval.low <= found.macro_f1_difference <= found.interval.high
    assert found.largest_difference == pytest.approx(100, abs=1e-3)


def test_the_classes_may_stand_in_another_order(images: RealImages, student: Student) -> None:
    order = [4, 2, 0, 1, 3]
    card = replace(student.card, tasks={"class": tuple(student.card.classes[number] for number in order)})

    class Reordered(Elsewhere):
        def logits(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
            return super().logits(inputs)[:, order]

    assert images.compare(Reordered(student), card).n_agreeing == 60


def test_numbers_that_are_none_are_an_error(images: RealImages, student: Student) -> None:
    with pytest.raises(RunError, match="numbers that are not finite"):
        images.compare(Elsewhere(student, np.float32(np.nan)), student.card)


def test_images_that_it_did_not_learn_from_come_first(
    images: RealImages, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert student.run is not None
    learned = student.run.learned_keys()
    assert learned is not None
    monkeypatch.setattr(module, "N_COMPARED", 40)
    asked = [sample.key in learned for sample in images.compared()]
    assert asked == [False] * 30 + [True] * 10
    monkeypatch.setattr(module, "N_COMPARED", 10)
    assert [sample.key in learned for sample in images.compared()] == [False] * 20


def test_usual_images_are_those_that_it_learned_from(images: RealImages) -> None:
    (batch,) = images.usual(5)
    assert (batch.shape, batch.dtype) == ((5, 3, 32, 32), np.float32)
    assert np.isfinite(batch).all()


@given(st.integers(1, 5000), st.integers(0, 60))
def test_at_most_the_asked_share_disagrees_and_one_image_always_may(n_images: int, n_other: int) -> None:
    found = Fidelity(
        n_images=n_images, n_unseen=0, n_agreeing=max(0, n_images - n_other), largest_difference=0, macro_f1=None,
        macro_f1_difference=None, interval=None,
    )  # fmt: skip
    n_other = n_images - found.n_agreeing
    assert found.is_enough(0.999) == (n_other <= 1 or n_other / n_images <= 0.001 + 1e-12)


def test_the_sentence_says_where_images_have_no_label() -> None:
    found = Fidelity(
        n_images=1200, n_unseen=0, n_agreeing=1199, largest_difference=0.1, macro_f1=None, macro_f1_difference=None,
        interval=None,
    )  # fmt: skip
    assert found.to_text() == (
        "1 of 1,200 images (1,200 of which it learned from) get another class than by the checkpoint, 99.92% agree; "
        "DATA has no label that the student knows, so no macro F1"
    )
