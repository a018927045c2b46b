"""Rendered views: the same row gives the same pixels, for ever, and the witness tells wrong ones."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from data.views import CLEAN_ROW, COLUMNS, ViewPolicy, draw, render, witness, witness_tolerance
from pipeline.demo.lesions import CLASSES, draw_lesion, paint

KEY, LESION_KEY = bytes(range(16)), hashlib.blake2b(b"a lesion", digest_size=16).digest()
# (view, size): sha256 of the pixels, and the witness.
GOLDEN_RENDERS = {
    (1, 32): ("b024372da6d6eea957a09dc392d2b313afbb1cd1a0130168caa81752227e2349", "87b4bd8e9fe7c7f5d9978dcf"),
    (1, 96): ("d8f9144d200b17d5d091f3590fa100b2bbea0596d07674065ac3cec95c09035a", "87b4bd8e9fe7c7f5d9978dcf"),
    (2, 32): ("c020051c861f027d5da98104dcbdc0a04c5851b27b6be74c05a201d795147383", "dab1a5dacff3adf5ace9e2b3"),
    (2, 96): ("1394c8bedcd732e7477cd05c69c30a523afebb3333417f99928fb6df3f3a9d54", "dab1a5dacff3aef5ace9e2b3"),
    (3, 32): ("8fae2deef33e19f0b657816e9e8939f7fa5bc1f1fa94bb7706c5434faf321d4a", "5aa882a07590acba9b8f74b0"),
    (3, 96): ("db2074adfbc908dde6d4b06dedb96ef82d652b089fe07ad64bd7246a31a888e3", "5aa882a07590acba9b8f74b0"),
}


def synthetic_image(height_px: int = 60, width_px: int = 80) -> Tensor:
    """Slow waves, other ones in each channel, made of integers only: uint8 [3, H, W]."""
    y, x = torch.meshgrid(torch.arange(height_px), torch.arange(width_px), indexing="ij")
    waves = [(5 * x + 2 * y) % 512, (3 * y + 90 + x) % 512, (4 * x - 3 * y + 700) % 512]
    return torch.stack([torch.where(wave < 256, wave, 511 - wave) for wave in waves]).to(torch.uint8)


@functools.cache
def lesion_image(number: int, height_px: int, width_px: int) -> Tensor:
    """A painted lesion, uint8 [3, H, W]."""
    rng = np.random.default_rng(number)
    side_px = max(height_px, width_px)
    painted = paint(draw_lesion(list(CLASSES)[number % len(CLASSES)], rng), side_px, rng)
    return torch.from_numpy(painted[:height_px, :width_px].copy()).permute(2, 0, 1)


def row_of(**changes: float) -> NDArray[np.float32]:
    """The clean row with some columns changed."""
    row = CLEAN_ROW.copy()
    for name, value in changes.items():
        row[COLUMNS.index(name)] = value
    return row


@pytest.mark.parametrize(("view", "size_px"), GOLDEN_RENDERS)
def test_rendered_views_stay_what_they_were(view: int, size_px: int) -> None:
    sha256, expected_witness = GOLDEN_RENDERS[view, size_px]
    rendered = render(synthetic_image(), draw(ViewPolicy(), KEY, view, 0), size_px)
    difference = witness(rendered).astype(int) - np.frombuffer(bytes.fromhex(expected_witness), np.uint8)
    assert np.abs(difference).max() <= 1
    # Other vector units round a few pixels differently.
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert hashlib.sha256(rendered.contiguous().numpy().tobytes()).hexdigest() == sha256


@given(key=st.binary(min_size=16, max_size=16), view=st.integers(1, 65_535))
@settings(max_examples=15)
def test_a_view_replayed_from_the_stored_bytes_is_the_same_view(key: bytes, view: int) -> None:
    row = draw(ViewPolicy(), key, view, 3)
    stored = np.frombuffer(row.astype("<f4").tobytes(), "<f4")
    assert torch.equal(render(synthetic_image(), stored, 32), render(synthetic_image(), row, 32))


@pytest.mark.parametrize("shape", [(60, 80), (97, 31), (20, 20), (300, 200)])
@pytest.mark.parametrize("size_px", [32, 56])
def test_view_0_equals_the_resize_of_torchvision(shape: tuple[int, int], size_px: int) -> None:
    image = synthetic_image(*shape)
    expected = v2.Resize((size_px, size_px), antialias=True)(image)
    assert torch.equal(render(image, CLEAN_ROW, size_px), expected)


def test_flips_and_turns_come_in_the_documented_order() -> None:
    image = synthetic_image(24, 24)
    as_numpy = image.numpy()
    turned = np.rot90(as_numpy[:, :, ::-1], 1, axes=(1, 2))  # counter-clockwise, after the horizontal flip
    np.testing.assert_array_equal(render(image, row_of(hflip=1, quarter_turns=1), 24).numpy(), turned)
    other_order = np.rot90(as_numpy, 1, axes=(1, 2))[:, :, ::-1]
    assert not np.array_equal(turned, other_order)
    upside_down = np.rot90(as_numpy[:, ::-1], 3, axes=(1, 2))
    np.testing.assert_array_equal(render(image, row_of(vflip=1, quarter_turns=3), 24).numpy(), upside_down)


def test_colours_come_last_in_the_documented_order_with_uint8_after_each() -> None:
    image = synthetic_image(24, 24)
    brighter = F.adjust_brightness(image, 1.5)
    expected = F.adjust_saturation(F.adjust_contrast(brighter, 0.5), 1.5)
    row = row_of(brightness=1.5, contrast=0.5, saturation=1.5)
    assert torch.equal(render(image, row, 24), expected)
    assert not torch.equal(F.adjust_brightness(F.adjust_saturation(F.adjust_contrast(image, 0.5), 1.5), 1.5), expected)
    np.testing.assert_array_equal(
        render(image, row_of(brightness=0.5), 24).numpy(), np.floor(image.numpy() * 0.5).astype(np.uint8)
    )


def test_a_crop_is_taken_before_the_resize_with_rounded_edges() -> None:
    image = synthetic_image(42, 44)
    # x from 0.125 * 44 = 5.5 -> 6 to 0.6875 * 44 = 30.25 -> 30;
    # y from 0.25 * 42 = 10.5 -> 11 to 0.75 * 42 = 31.5 -> 32.
    view = render(image, row_of(crop_x=0.125, crop_y=0.25, crop_w=0.5625, crop_h=0.5), 16)
    assert torch.equal(view, F.resize(image[:, 11:32, 6:30], [16, 16], antialias=True))


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (8, 8)])
@pytest.mark.parametrize("geometry", ["warp", "pad"])
def test_tiny_images_render(shape: tuple[int, int], geometry: str) -> None:
    image = torch.full((3, *shape), 100, dtype=torch.uint8)
    for size_px in (32, 96):
        for view in range(12):
            rendered = render(image, draw(ViewPolicy(geometry=geometry), LESION_KEY, view, 0), size_px, geometry)
            assert rendered.shape == (3, size_px, size_px)
            assert rendered.dtype == torch.uint8
        clean = render(image, CLEAN_ROW, size_px, geometry)
        assert 0 < clean.max() <= 100  # at few pixels the line of a padded 1 x 500 image is a faint one
        if geometry == "warp" or shape[0] == shape[1]:
            assert clean.min() == 100


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (31, 97), (300, 400)])
@pytest.mark.parametrize("size_px", [32, 96, 224])
def test_the_padded_clean_view_equals_resizing_the_padded_image(shape: tuple[int, int], size_px: int) -> None:
    image = lesion_image(3, *shape)
    height_px, width_px = shape
    side_px = max(shape)
    top, left = (side_px - height_px) // 2, (side_px - width_px) // 2
    square = torch.zeros(3, side_px, side_px, dtype=torch.uint8)
    square[:, top : top + height_px, left : left + width_px] = image
    expected = F.resize(square, [size_px, size_px], antialias=True).int()
    found = render(image, CLEAN_ROW, size_px, "pad").int()
    if width_px < height_px:
        expected, found = expected.mT, found.mT
    # The bars end within a pixel or the antialiasing's reach of the same place, and inside only noise moves.
    offset = (side_px - min(shape)) // 2 / side_px * size_px
    reach = max(2.0, 2 * size_px / side_px)
    position = torch.arange(size_px)
    inside = (position > offset + reach) & (position < size_px - offset - reach - 1)
    outside = (position < offset - reach) | (position > size_px - offset + reach)
    assert inside.sum() > size_px * 0.15
    assert (found - expected)[:, inside].abs().float().mean() < 5
    assert found[:, inside].float().mean() == pytest.approx(expected[:, inside].float().mean(), abs=1)
    assert (found[:, outside] == 0).all()
    assert (expected[:, outside] == 0).all()


@pytest.mark.parametrize("shape", [(30, 80), (80, 30), (97, 64)])
def test_bars_are_black_but_for_their_edges(shape: tuple[int, int]) -> None:
    white = torch.full((3, *shape), 255, dtype=torch.uint8)
    policy = ViewPolicy(geometry="pad", brightness=0.0, contrast=0.0, saturation=0.0)
    for view in range(20):
        rendered = render(white, draw(policy, LESION_KEY, view, 0), 48, "pad")
        black, full = (rendered == 0).double().mean(), (rendered == 255).double().mean()
        assert full > 0.2
        assert black + full > 0.85
    clean = render(white, CLEAN_ROW, 48, "pad")
    assert (clean == 255).double().mean() == pytest.approx(min(shape) / max(shape), abs=0.07)


@pytest.mark.parametrize("geometry", ["warp", "pad"])
@pytest.mark.parametrize(
    "change",
    [
        *({"hflip": 1}, {"vflip": 1}, {"quarter_turns": 1}, {"quarter_turns": 2}, {"quarter_turns": 3}),
        *({"brightness": 0.9}, {"brightness": 1.1}, {"saturation": 0.8}),
        *({"crop_w": 0.9}, {"crop_y": 0.1, "crop_h": 0.9}),
    ],
    ids=str,
)
def test_the_witness_sees_a_wrong_flip_turn_colour_or_crop(change: dict[str, float], geometry: str) -> None:
    image = synthetic_image()
    right, wrong = (witness(render(image, row, 96, geometry)) for row in (CLEAN_ROW, row_of(**change)))
    assert np.abs(right.astype(int) - wrong).max() > witness_tolerance(96)


def test_the_witness_is_the_rounded_mean_of_each_quadrant() -> None:
    view = torch.zeros(3, 4, 4, dtype=torch.uint8)
    view[0, :2, 2:] = 10
    view[1, 2:, :2] = torch.tensor([[1, 2], [1, 2]])  # mean 1.5 is rounded up
    view[2, 3, 3] = 255  # mean 63.75
    assert witness(view).tolist() == [0, 10, 0, 0, 0, 0, 2, 0, 0, 0, 0, 64]
    assert witness(view).dtype == np.uint8


def witnesses(size_px: int, geometry: str) -> NDArray[np.int64]:
    """Of views of lesions of several shapes, int64 [views, 12]."""
    found = []
    for number, shape in enumerate([(300, 400), (400, 300), (97, 131), (240, 240), (301, 399)]):
        image = lesion_image(number, *shape)
        rows = (draw(ViewPolicy(geometry=geometry), bytes([number]) * 16, view, 0) for view in range(4))
        found += [witness(render(image, row, size_px, geometry)) for row in rows]
    return np.array(found, np.int64)


@pytest.fixture(scope="module", params=["warp", "pad"])
def teacher_witnesses(request: pytest.FixtureRequest) -> tuple[str, NDArray[np.int64]]:
    """(geometry, witnesses of the views as a teacher of 448 px sees them)."""
    return request.param, witnesses(448, request.param)


@pytest.mark.parametrize("size_px", [224, 96, 64, 97, 65, 32, 33])
def test_witnesses_of_one_view_agree_between_sizes(
    size_px: int, teacher_witnesses: tuple[str, NDArray[np.int64]]
) -> None:
    geometry, expected = teacher_witnesses
    assert np.abs(witnesses(size_px, geometry) - expected).max() <= witness_tolerance(size_px)
