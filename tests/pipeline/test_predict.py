"""Using a student: probabilities by file, from a run folder and its export alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import BadImage
from pipeline.export import export
from pipeline.predict import predict


def test_probabilities_sum_to_one_and_the_label_is_the_largest(tiny_run: Path, tiny_data: Path) -> None:
    paths = sorted(tiny_data.glob("test/*/*.png"))[:4]
    for path, found in zip(paths, predict(tiny_run, paths), strict=True):
        assert found.path == str(path)
        assert sum(found.probabilities.values()) == pytest.approx(1)
        assert found.label == max(found.probabilities, key=lambda name: found.probabilities[name])


def test_the_exported_file_says_the_same(tiny_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    paths = sorted(tiny_data.glob("test/*/*.png"))[:4]
    export(tiny_run, tmp_path / "m.pt")
    for one, other in zip(predict(tiny_run, paths), predict(tmp_path / "m.pt", paths), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_a_file_that_is_no_image_is_named(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("hello")
    with pytest.raises(BadImage, match=r"x\.jpg: cannot be decoded \(not an image\)"):
        predict(tiny_run, [tmp_path / "x.jpg"])


def test_a_folder_says_to_name_images(tiny_run: Path, tiny_data: Path) -> None:
    with pytest.raises(BadImage, match=r"test is a folder: name image files, such as .*/test/\*\.jpg"):
        predict(tiny_run, [tiny_data / "test"])
