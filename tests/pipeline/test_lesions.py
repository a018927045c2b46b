"""The procedural lesions: the same for the same seed, of classes that differ and overlap."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.samples import FOLDER_TASK
from data.scan import scan_data
from pipeline.demo.lesions import CLASSES, Lesion, draw_lesion, paint, write_lesions

FIELDS = tuple(Lesion.__dataclass_fields__)


def attributes(label: str, n_lesions: int, seed: int) -> NDArray[np.float64]:
    """[N, attributes]"""
    drawn = (draw_lesion(label, np.random.default_rng([seed, number])) for number in range(n_lesions))
    return np.array([[getattr(lesion, name) for name in FIELDS] for lesion in drawn])


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def test_the_same_seed_writes_the_same_files_and_another_one_others(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_lesions(tmp_path / name, {"train": 2, "test": 1}, size_px=24, seed=seed)
    first, again, other = (files_of(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert not set(first.values()) & set(other.values())


def test_every_image_is_another_one_and_lies_where_a_data_folder_has_it(tmp_path: Path) -> None:
    write_lesions(tmp_path, {"train": 3, "val": 2, "test": 1}, size_px=20)
    found = scan_data(tmp_path)
    assert found.classes == {FOLDER_TASK: tuple(sorted(CLASSES))}
    assert {split: len(found.of_split(split)) for split in found.splits} == {"train": 15, "val": 10, "test": 5}
    assert len({sample.key for sample in found.samples}) == 30
    with Image.open(found.samples[0].path) as image:
        assert (image.size, image.mode) == ((20, 20), "RGB")


def test_more_images_keep_those_that_were_there(tmp_path: Path) -> None:
    write_lesions(tmp_path / "few", {"train": 2}, size_px=20)
    write_lesions(tmp_path / "many", {"train": 3}, size_px=20)
    assert files_of(tmp_path / "few").items() < files_of(tmp_path / "many").items()
    assert len(os.listdir(tmp_path / "many" / "train")) == len(CLASSES)


@pytest.mark.parametrize("label", CLASSES)
def test_attributes_are_in_range_and_near_their_centre(label: str) -> None:
    drawn = attributes(label, 300, 0)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    centre = np.array([getattr(CLASSES[label], name) for name in FIELDS])
    assert np.abs(np.median(drawn, axis=0) - centre).max() < 0.12


def test_classes_overlap_but_differ() -> None:
    """Told by the nearest centre, most lesions find their class and a good part does not."""
    labels = list(CLASSES)
    centres = np.array([[getattr(CLASSES[label], name) for name in FIELDS] for label in labels])
    right = 0
    for i, label in enumerate(labels):
        drawn = attributes(label, 200, i)
        distances = np.linalg.norm(drawn[:, None] - centres, axis=2)
        right += int((distances.argmin(axis=1) == i).sum())
    assert 0.55 < right / (200 * len(labels)) < 0.97


def test_images_of_two_classes_differ_in_their_colours_more_than_chance_allows() -> None:
    means = {}
    for i, label in enumerate(("basal cell carcinoma", "melanoma")):
        rngs = [np.random.default_rng([i, number]) for number in range(20)]
        images = np.stack([paint(draw_lesion(label, rng), 24, rng)[8:16, 8:16] for rng in rngs])
        means[label] = images.mean(axis=(1, 2, 3))
    light, dark = means.values()
    standard_error = np.hypot(light.std(), dark.std()) / 20**0.5
    assert light.mean() - dark.mean() > 3 * standard_error
    assert light.min() < dark.max(), "single images overlap"


@pytest.mark.parametrize("size_px", [8, 33, 96])
def test_a_painting_has_the_wanted_shape_and_some_contrast(size_px: int) -> None:
    painted = paint(CLASSES["melanoma"], size_px, np.random.default_rng(0))
    assert painted.shape == (size_px, size_px, 3)
    assert painted.dtype == np.uint8
    assert painted.std() > 10


def test_an_unknown_label_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        draw_lesion("freckle", np.random.default_rng(0))
