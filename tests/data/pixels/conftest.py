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
    for number, sample in enumerate(samples):
        for view in range(N_VIEWS):
            place = N_VIEWS * number + view
            made.append(ViewItem(sample, draw(ViewPolicy(), sample.key, view, 0), 100 + place, 10 + place))
    return made[::2] + made[1::2]
