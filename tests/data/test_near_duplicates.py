"""Near-duplicates: copies are found, others are not, and every pair is compared once."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from data import near_duplicates as module
from data.errors import BadOption
from data.near_duplicates import NearDuplicateConfig, gray_picture, near_duplicates, perceptual_hashes, popcount

Pictures = NDArray[np.uint8]


def photograph(seed: int, px: int = 160) -> Image.Image:
    """Blobs of colour under fine grain."""
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)).resize((px, px), Image.Resampling.BICUBIC)
    grain = rng.integers(-6, 6, (px, px, 3))
    return Image.fromarray((np.asarray(blobs).astype(int) + grain).clip(0, 255).astype(np.uint8))


def pictures_of(images: list[Image.Image]) -> Pictures:
    return np.stack([gray_picture(torch.from_numpy(np.array(image)).permute(2, 0, 1)) for image in images])


def saved_again(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    return ImageOps.crop(image, round(0.0125 * image.width))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 60": saved_again,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "2.5 % cropped": cropped,
    "10 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
    "turned": lambda image: image.rotate(90),
    "saved again, darker and upside down": lambda image: ImageOps.flip(
        saved_again(ImageEnhance.Brightness(image).enhance(0.9))
    ),
}
IMAGES = [photograph(seed) for seed in range(30)]


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_found_and_nothing_else_is(how: str) -> None:
    copies = [COPIES[how](image) for image in IMAGES]
    found = near_duplicates(pictures_of(IMAGES + copies), np.repeat([0, 1], len(IMAGES)))
    pairs = sorted(zip(found.one_P.tolist(), found.other_P.tolist(), strict=True))
    assert pairs == [(at, at + len(IMAGES)) for at in range(len(IMAGES))]
    assert found.is_turned_P.tolist() == [how in ("mirrored", "turned", "saved again, darker and upside down")] * len(
        IMAGES
    )
    assert (found.correlation_P[:-1] >= found.correlation_P[1:]).all()
    assert found.correlation_P.min() >= 0.98


def test_a_stricter_correlation_or_hash_finds_fewer() -> None:
    pictures = pictures_of(IMAGES + [cropped(image) for image in IMAGES])
    places = np.repeat([0, 1], len(IMAGES))
    for strict in (NearDuplicateConfig(min_correlation=0.9999), NearDuplicateConfig(max_hamming=0)):
        assert len(near_duplicates(pictures, places, strict).one_P) < len(IMAGES)


@pytest.mark.parametrize("g", range(8))
def test_the_hashes_of_all_orientations_come_from_one_transform(g: int) -> None:
    pictures = pictures_of(IMAGES)
    of_turned = perceptual_hashes(module._turned(pictures, g).copy())[0]
    assert popcount(of_turned ^ perceptual_hashes(pictures)[g]).max() <= 2  # where a value is the median itself


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=60), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_each_pair_of_two_places_is_compared_once(which: list[tuple[int, int]], n_rows: int, n_columns: int) -> None:
    """Images are (subject, place): those of one subject are the same picture."""
    base = pictures_of(IMAGES[:6])
    subject, place = (np.array([one[at] for one in which], np.int64) for at in (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_ROWS", n_rows)
        patch.setattr(module, "_COLUMNS", n_columns)
        patch.setattr(module, "_BATCH", n_rows)
        found = near_duplicates(base[subject], place)
    pairs = [tuple(sorted(pair)) for pair in zip(found.one_P.tolist(), found.other_P.tolist(), strict=True)]
    expected = [
        (i, j) for i in range(len(which)) for j in range(i + 1, len(which))
        if subject[i] == subject[j] and place[i] != place[j]
    ]  # fmt: skip
    assert sorted(pairs) == expected
    assert not found.hamming_P.any()
    assert not found.is_turned_P.any()


def test_images_of_one_colour_are_counted_and_look_like_nothing() -> None:
    flat = [Image.new("RGB", (40, 40), (shade, shade, shade)) for shade in (0, 0, 128, 255)]
    found = near_duplicates(pictures_of([*flat, *IMAGES[:2]]), np.arange(6))
    assert (found.n_flat, len(found.one_P)) == (4, 0)
    everything_flat = near_duplicates(pictures_of(flat), np.arange(4))
    assert (everything_flat.n_flat, len(everything_flat.one_P)) == (4, 0)


def test_bits_are_counted_without_numpys_own_function_too(monkeypatch: pytest.MonkeyPatch) -> None:
    words = np.random.default_rng(0).integers(0, 2**64, (50, 40), dtype=np.uint64)
    words[0, :2] = 0, 2**64 - 1
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    counts = popcount(words)
    assert counts.dtype == np.uint8
    assert counts.tolist() == [[int(word).bit_count() for word in row] for row in words]


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"max_hamming": 21}, "must be in 0..20, got 21"), ({"max_hamming": -1}, "must be in 0..20, got -1"),
     ({"min_correlation": 0.4}, "must be in 0.5..1, got 0.4"), ({"min_correlation": float("nan")}, "got nan")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting: dict[str, float], said: str) -> None:
    with pytest.raises(BadOption, match=said):
        NearDuplicateConfig(**setting)
