"""Which labels are kept, what classes weigh, how frequent they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SettingError
from pipeline.tasks import UNLABELLED, Tasks
from pipeline.training.labels import class_counts, class_weights, keep_labels, logit_offsets

CLASSES = ("mel", "nv", "vasc")
LABELS = np.array([0] * 10 + [1] * 60 + [2] * 30)[:, None]
TASKS = Tasks({"class": CLASSES})
KEYS = [number.to_bytes(16, "big") for number in range(len(LABELS))]


def test_a_tenth_of_the_labels_has_the_class_shares_of_the_whole() -> None:
    kept = keep_labels(KEYS, LABELS, 0.1, seed=0)
    assert class_counts(kept[:, 0], 3).tolist() == [1, 6, 3]
    assert ((kept == LABELS) | (kept == UNLABELLED)).all()


def test_a_class_whose_share_is_less_than_one_image_keeps_one() -> None:
    labels = np.array([0] * 60 + [1] * 37 + [2] * 3)[:, None]
    chosen = [keep_labels(KEYS, labels, 0.1, seed=seed) for seed in range(8)]
    assert all(class_counts(kept[:, 0], 3).tolist() == [6, 4, 1] for kept in chosen)
    assert len({int(np.flatnonzero(kept == 2)[0]) for kept in chosen}) > 1
    np.testing.assert_array_equal(keep_labels(KEYS[::-1], labels[::-1], 0.1, seed=0)[::-1], chosen[0])


def test_all_labels_are_kept_as_they_are() -> None:
    assert keep_labels(KEYS, LABELS, 1.0, seed=0) is LABELS


def test_which_labels_are_kept_depends_on_content_and_seed_not_on_order() -> None:
    kept = keep_labels(KEYS, LABELS, 0.2, seed=0)
    np.testing.assert_array_equal(keep_labels(KEYS[::-1], LABELS[::-1], 0.2, seed=0)[::-1], kept)
    assert (keep_labels(KEYS, LABELS, 0.2, seed=1) != kept).any()


def test_a_class_too_small_for_the_fraction_is_refused() -> None:
    with pytest.raises(SettingError, match=r"label_fraction 0\.5 cannot be drawn by class from 3 images"):
        keep_labels(KEYS[:3], np.array([[0], [0], [1]]), 0.5, seed=0)


def test_automatic_weights_are_inverse_to_frequency_with_mean_one() -> None:
    weights = class_weights("auto", LABELS, TASKS)
    assert weights is not None
    assert weights[LABELS[:, 0]].mean() == pytest.approx(1)
    np.testing.assert_allclose(weights * class_counts(LABELS[:, 0], 3), [100 / 3] * 3, rtol=1e-6)


def test_images_without_a_label_weigh_nothing_and_a_class_without_images_is_no_division_by_zero() -> None:
    labels = np.array([[0], [0], [1], [UNLABELLED]])
    weights = class_weights("auto", labels, TASKS)
    assert weights is not None
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(weights[:2], [0.75, 1.5])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=50))
def test_weights_never_change_the_mean_of_a_loss_that_is_equal_for_all(labels: list[int]) -> None:
    weights = class_weights("auto", np.array(labels)[:, None], TASKS)
    assert weights is not None
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)


def test_weights_of_a_file_are_joined_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.yaml"
    path.write_text("vasc: 1\nmel: 4\nnv: 1\n")
    weights = class_weights(str(path), LABELS, TASKS)
    assert weights is not None
    np.testing.assert_allclose(weights, np.array([4, 1, 1]) / 1.3, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mel: 1\nnv: 1\nvask: 1\n", "unknown class 'vask'; did you mean 'vasc'?; no weight for 'vasc'"),
        ("mel: 1\nnv: -1\nvasc: 1\n", "the weight of 'nv' is -1, expected a number from 0"),
        ("mel: 1\nnv: yes\nvasc: 1\n", "the weight of 'nv' is True"),
        ("mel: 0\nnv: 0\nvasc: 0\n", "all weigh 0"),
        ("- 1\n- 2\n", "holds no weights: expected YAML with one line a class"),
        ("mel: [\n", "is not YAML"),
    ],
)
def test_a_file_of_weights_that_does_not_fit_says_why(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "weights.yaml").write_text(text)
    with pytest.raises(SettingError) as caught:
        class_weights(str(tmp_path / "weights.yaml"), LABELS, TASKS)
    assert said in str(caught.value)


def test_a_word_that_is_no_file_names_the_choices() -> None:
    with pytest.raises(SettingError, match=r"expected none, auto \(inverse to .* share\), or a file of"):
        class_weights("automatic", LABELS, TASKS)


def test_no_weights_and_no_offsets_by_default() -> None:
    assert class_weights("none", LABELS, TASKS) is None
    assert logit_offsets(0.0, LABELS, TASKS) is None


def test_offsets_are_tau_times_the_log_of_the_class_share() -> None:
    np.testing.assert_allclose(logit_offsets(2.0, LABELS, TASKS), 2 * np.log([0.1, 0.6, 0.3]), rtol=1e-6)
    assert np.isfinite(logit_offsets(1.0, np.array([[0], [1]]), TASKS)).all()


TWO = Tasks({"modality": ("CT", "MR"), "organ": ("head", "chest", "foot")})
TWO_LABELS = np.array([[0, 0], [0, 1], [0, 1], [1, UNLABELLED], [UNLABELLED, UNLABELLED]])


def test_each_task_weighs_its_own_classes() -> None:
    weights = class_weights("auto", TWO_LABELS, TWO)
    modality = class_weights("auto", TWO_LABELS[:, :1], Tasks({"modality": TWO["modality"]}))
    organ = class_weights("auto", TWO_LABELS[:, 1:], Tasks({"organ": TWO["organ"]}))
    assert weights is not None
    np.testing.assert_array_equal(weights, np.concatenate([modality, organ]))
    np.testing.assert_allclose(np.exp(logit_offsets(1.0, TWO_LABELS, TWO)), [3 / 4, 1 / 4, 1 / 4, 2 / 4, 1 / 4])


def test_weights_of_several_tasks_are_named_by_task_and_class(tmp_path: Path) -> None:
    path = tmp_path / "weights.yaml"
    path.write_text("'modality: CT': 1\n'modality: MR': 3\n'organ: head': 1\n'organ: chest': 1\n'organ: foot': 5\n")
    weights = class_weights(str(path), TWO_LABELS, TWO)
    assert weights is not None
    np.testing.assert_allclose(weights[:2], np.array([1, 3]) / 1.5)
    np.testing.assert_allclose(weights[2:], [1, 1, 5])


def test_a_label_is_kept_or_dropped_in_all_tasks_at_once() -> None:
    labels = np.repeat(TWO_LABELS, 20, axis=0)
    kept = keep_labels(KEYS, labels, 0.2, seed=0)
    dropped = (kept == UNLABELLED).all(axis=1)
    assert (kept[~dropped] == labels[~dropped]).all()
    assert (~dropped).sum() == 16
