"""The file of a sample: only the bytes that were hashed are ever decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import UnreadableImage
from data.reading import is_decodable, read_sample
from data.samples import Sample, content_key


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    """An image of 21 x 30 pixels."""
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)).save(path)
    return Sample(content_key(path.read_bytes()), str(path), path.name, "train", {"class": "mel"})


def test_a_sample_is_hashed_from_the_bytes_that_are_decoded(sample: Sample) -> None:
    assert read_sample(sample).shape == (3, 21, 30)
    Image.new("RGB", (30, 21)).save(sample.path)
    with pytest.raises(UnreadableImage, match="changed while it was in use"):
        read_sample(sample)
    Path(sample.path).unlink()
    with pytest.raises(UnreadableImage, match="cannot be read"):
        read_sample(sample)


def test_whether_a_file_holds_an_image_is_not_said_of_one_that_cannot_be_read(sample: Sample) -> None:
    assert is_decodable(sample)
    Path(sample.path).unlink()
    with pytest.raises(UnreadableImage, match="cannot be read"):
        is_decodable(sample)
