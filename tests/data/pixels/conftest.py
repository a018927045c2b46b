"""A few images and what is asked of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.samples import Sample, content_key
from data.view_batches import ViewItem
from data.views import ViewPolicy, draw

N_VIEWS = 3


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Four images of noise, each of its own shape; EXIF turns the second one, the third is gray."""
    made = []
    for number in range(4):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[274] = 6 if number == 1 else 1
        path = tmp_path / f"{number}.png"
        (image.convert("L") if number == 2 else image).save(path, exif=exif)
        made.append(Sample(content_key(path.read_bytes()), str(path), path.name, "train", {"class": "mel"}))
    return made


@pytest.fixture
def items(samples: list[Sample]) -> list[ViewItem]:
    """Three views of each image, as rows 10 and following of a table, in another order."""
    made = []
    for number, sample in enumerate(samples):
        for view in range(N_VIEWS):
            place = N_VIEWS * number + view
            made.append(ViewItem(sample, draw(ViewPolicy(), sample.key, view, 0), 100 + place, 10 + place))
    return made[::2] + made[1::2]
