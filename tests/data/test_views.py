"""Views: the same key, view index and seed give the same numbers and the same pixels, for ever."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from data.views import (
    CLEAN_ROW,
    COLUMNS,
    ViewPolicy,
    draw,
    render,
    view_order,
    witness,
    witness_tolerance,
)
from pipeline.demo.lesions import CLASSES, draw_lesion, paint

GOLDEN_KEYS = (bytes(range(16)), b"\xff" * 16, hashlib.blake2b(b"a lesion", digest_size=16).digest(), bytes(16))
GOLDEN_DRAWS = tuple(
    (key, view, seed) for key in GOLDEN_KEYS for view, seed in ((1, 0), (2, 0), (7, 1), (65_535, 42), (3, 2**63 - 1))
)
GOLDEN_ROWS_SHA256 = "afc655cfa787aae009c3b849befa61b96347c2e07c8e11cf9279b328be419a2b"
GOLDEN_FIRST_ROWS = (
    "3ee48f3d8565023e5471583f8cc92f3f000000000000803f00004040f9697f3f0544953fbbb78b3f",
    "5a1b193da2ad363e62c0303ff5f33a3f000000000000803f000000404ce2973f4b078a3f7d2c933f",
    "5016583d69ecac3d1645533f9f88523f000000000000803f0000803feddd903f0695913f25c88c3f",
)  # fmt: skip
# (view, size): sha256 of the pixels, and the witness.
GOLDEN_RENDERS = {
    (1, 32): ("b024372da6d6eea957a09dc392d2b313afbb1cd1a0130168caa81752227e2349", "87b4bd8e9fe7c7f5d9978dcf"),
    (1, 96): ("d8f9144d200b17d5d091f3590fa100b2bbea0596d07674065ac3cec95c09035a", "87b4bd8e9fe7c7f5d9978dcf"),
    (2, 32): ("c020051c861f027d5da98104dcbdc0a04c5851b27b6be74c05a201d795147383", "dab1a5dacff3adf5ace9e2b3"),
    (2, 96): ("1394c8bedcd732e7477cd05c69c30a523afebb3333417f99928fb6df3f3a9d54", "dab1a5dacff3aef5ace9e2b3"),
    (3, 32): ("8fae2deef33e19f0b657816e9e8939f7fa5bc1f1fa94bb7706c5434faf321d4a", "5aa882a07590acba9b8f74b0"),
    (3, 96): ("db2074adfbc908dde6d4b06dedb96ef82d652b089fe07ad64bd7246a31a888e3", "5aa882a07590acba9b8f74b0"),
}

keys = st.binary(min_size=16, max_size=16)
views = st.integers(1, 65_535)
seeds = st.integers(0, 2**63 - 1)


@st.composite
def policies(pick: Callable) -> ViewPolicy:
    """Any policy within the documented ranges."""
    share = st.floats(0, 1, allow_subnormal=False)
    return ViewPolicy(
        crop_area_min=pick(st.floats(0.01, 1)),
        crop_ratio_max=pick(st.floats(1, 4)),
        hflip_probability=pick(share),
        vflip_probability=pick(share),
        quarter_turns=pick(st.booleans()),
        brightness=pick(share),
        contrast=pick(share),
        saturation=pick(share),
        geometry=pick(st.sampled_from(["warp", "pad"])),
    )


def synthetic_image(height_px: int = 60, width_px: int = 80) -> Tensor:
    """Slow waves, other ones in each channel, made of integers only: uint8 [3, H, W]."""
    y, x = torch.meshgrid(torch.arange(height_px), torch.arange(width_px), indexing="ij")
    waves = [(5 * x + 2 * y) % 512, (3 * y + 90 + x) % 512, (4 * x - 3 * y + 700) % 512]
    return torch.stack([torch.where(wave < 256, wave, 511 - wave) for wave in waves]).to(torch.uint8)


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


def hex_of(row: NDArray[np.float32]) -> str:
    return row.astype("<f4").tobytes().hex()


def test_draw_version_1_gives_the_same_rows_for_ever() -> None:
    """The rows of every cache of draw version 1: if this fails, the draw version must go up, not the hash."""
    rows = [draw(ViewPolicy(), *arguments) for arguments in GOLDEN_DRAWS]
    assert len(rows) == 20
    assert tuple(hex_of(rows[i]) for i in (0, 5, 14)) == GOLDEN_FIRST_ROWS
    assert hashlib.sha256(b"".join(row.astype("<f4").tobytes() for row in rows)).hexdigest() == GOLDEN_ROWS_SHA256


@pytest.mark.parametrize(("view", "size_px"), GOLDEN_RENDERS)
def test_rendered_views_stay_what_they_were(view: int, size_px: int) -> None:
    sha256, expected_witness = GOLDEN_RENDERS[view, size_px]
    rendered = render(synthetic_image(), draw(ViewPolicy(), GOLDEN_KEYS[0], view, 0), size_px)
    difference = witness(rendered).astype(int) - np.frombuffer(bytes.fromhex(expected_witness), np.uint8)
    assert np.abs(difference).max() <= 1
    # Other vector units round a few pixels differently.
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert hashlib.sha256(rendered.contiguous().numpy().tobytes()).hexdigest() == sha256


@given(policy=policies(), key=keys, view=views, seed=seeds)
def test_every_drawn_number_is_in_its_range(policy: ViewPolicy, key: bytes, view: int, seed: int) -> None:
    row = draw(policy, key, view, seed)
    assert row.dtype == np.float32
    assert row.shape == (len(COLUMNS),)
    crop_x, crop_y, crop_w, crop_h, hflip, vflip, turns, *factors = (float(value) for value in row)
    rounding = 2.0**-23  # of two float32 numbers below 1
    for start, length in ((crop_x, crop_w), (crop_y, crop_h)):
        assert start >= 0
        assert 0 < length <= 1
        assert start + length <= 1 + rounding
    assert {hflip, vflip} <= {0.0, 1.0}
    assert turns in ((0, 1, 2, 3) if policy.quarter_turns else (0,))
    for factor, strength in zip(factors, (policy.brightness, policy.contrast, policy.saturation), strict=True):
        assert abs(factor - 1) <= strength + rounding


@given(policy=policies(), key=keys, view=views)
def test_a_crop_keeps_the_area_and_the_ratio_that_the_policy_allows(policy: ViewPolicy, key: bytes, view: int) -> None:
    _, _, crop_w, crop_h, *_ = (float(value) for value in draw(policy, key, view, 0))
    assert crop_w * crop_h >= policy.crop_area_min * (1 - 1e-6)
    assert 1 / policy.crop_ratio_max - 1e-6 <= crop_w / crop_h <= policy.crop_ratio_max + 1e-6


@given(key=keys, view=views, seed=seeds)
def test_probabilities_of_none_and_one_are_kept(key: bytes, view: int, seed: int) -> None:
    never = ViewPolicy(hflip_probability=0.0, vflip_probability=1.0, brightness=0.0, contrast=0.0, saturation=0.0)
    assert draw(never, key, view, seed)[[4, 5, 7, 8, 9]].tolist() == [0, 1, 1, 1, 1]


@given(key=keys, view=views, seed=seeds)
def test_a_column_does_not_move_when_another_setting_changes(key: bytes, view: int, seed: int) -> None:
    """Double i belongs to column i whether it is used or not."""
    all_on = draw(ViewPolicy(), key, view, seed)
    no_turns = draw(ViewPolicy(quarter_turns=False, hflip_probability=0.0, brightness=0.0), key, view, seed)
    untouched = [0, 1, 2, 3, 5, 8, 9]
    np.testing.assert_array_equal(all_on[untouched], no_turns[untouched])


@given(key=keys, view=views, seed=seeds)
def test_a_row_depends_on_policy_key_view_and_seed_only(key: bytes, view: int, seed: int) -> None:
    row = draw(ViewPolicy(), key, view, seed)
    np.random.default_rng().random(3)
    torch.rand(3)
    for other in (view % 65_535 + 1, 1):
        draw(ViewPolicy(crop_area_min=0.1), key, other, seed)
    np.testing.assert_array_equal(draw(ViewPolicy(), key, view, seed), row)
    flipped = bytes([key[0] ^ 1]) + key[1:]
    last = key[:-1] + bytes([key[-1] ^ 128])
    for others in ((flipped, view, seed), (last, view, seed), (key, view % 65_535 + 1, seed), (key, view, seed ^ 1)):
        assert not np.array_equal(draw(ViewPolicy(), *others)[:4], row[:4])


def test_neighbouring_views_and_seeds_are_not_shifted_copies_of_each_other() -> None:
    """A counter in the wrong word would give view v + 1 the numbers of view v, some columns further."""
    policy = ViewPolicy()

    def uniforms(view: int, seed: int) -> list[float]:
        x, y, w, h, *_, brightness, contrast, saturation = (float(v) for v in draw(policy, GOLDEN_KEYS[0], view, seed))
        factors = ((factor - 0.8) / 0.4 for factor in (brightness, contrast, saturation))
        return [x / max(1 - w, 1e-9), y / max(1 - h, 1e-9), *factors]

    base = np.array([uniforms(view, 5) for view in range(1, 301)])
    for other in (
        *(np.roll(base, -lag, axis=0) for lag in (1, 2, 3, 4)),
        [uniforms(view, 6) for view in range(1, 301)],
    ):
        correlation = np.corrcoef(base.T, np.transpose(other))[:5, 5:]
        assert np.abs(correlation).max() < 0.3  # chance gives 0.06, a copy 1
    assert np.abs(np.corrcoef(base.T) - np.eye(5)).max() < 0.3


def test_views_of_many_samples_use_the_whole_range() -> None:
    rows = np.stack([draw(ViewPolicy(), bytes([i, j] * 8), 1, 0) for i in range(20) for j in range(20)])
    area = rows[:, 2] * rows[:, 3]
    assert area.min() < 0.53
    assert area.max() > 0.95
    assert np.bincount(rows[:, 6].astype(int), minlength=4).min() > 70
    assert 0.42 < rows[:, 4].mean() < 0.58
    assert rows[:, 7].min() < 0.81
    assert rows[:, 7].max() > 1.19


@given(key=keys, view=views)
@settings(max_examples=15)
def test_a_view_replayed_from_the_stored_bytes_is_the_same_view(key: bytes, view: int) -> None:
    row = draw(ViewPolicy(), key, view, 3)
    stored = np.frombuffer(row.astype("<f4").tobytes(), "<f4")
    assert torch.equal(render(synthetic_image(), stored, 32), render(synthetic_image(), row, 32))


@given(policy=policies(), key=keys, seed=seeds)
def test_view_0_is_clean_under_every_policy(policy: ViewPolicy, key: bytes, seed: int) -> None:
    np.testing.assert_array_equal(draw(policy, key, 0, seed), CLEAN_ROW)


def test_the_clean_row_cannot_be_changed_through_a_drawn_one() -> None:
    draw(ViewPolicy(), bytes(16), 0, 0)[0] = 0.5
    assert CLEAN_ROW.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]


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
            rendered = render(image, draw(ViewPolicy(geometry=geometry), GOLDEN_KEYS[2], view, 0), size_px, geometry)
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
        rendered = render(white, draw(policy, GOLDEN_KEYS[2], view, 0), 48, "pad")
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


@given(key=keys, n_views=st.integers(1, 40), cycle=st.integers(0, 1000), seed=seeds)
def test_a_cycle_shows_each_view_once(key: bytes, n_views: int, cycle: int, seed: int) -> None:
    order = view_order(key, n_views, cycle, seed)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n_views))


def test_the_order_differs_between_samples_cycles_and_seeds() -> None:
    arguments = [(key, cycle, seed) for key in GOLDEN_KEYS[:2] for cycle in range(4) for seed in range(4)]
    orders = {tuple(view_order(key, 16, cycle, seed).tolist()) for key, cycle, seed in arguments}
    assert len(orders) == len(arguments)


def test_the_first_epoch_is_not_all_clean_and_a_cycle_is_not_a_drawn_row() -> None:
    first = [int(view_order(bytes([i]) * 16, 8, 0, 0)[0]) for i in range(200)]
    assert np.bincount(first, minlength=8).min() > 8
    assert np.bincount(first, minlength=8).max() < 60
    # The schedule has a stream of its own: cycle 1 is not ordered by the numbers of view 1.
    policy = ViewPolicy(crop_area_min=1.0, crop_ratio_max=1.0)
    drawn = np.array([draw(policy, bytes([i]) * 16, 1, 0)[7:] for i in range(50)])
    by_numbers = np.argsort(drawn, axis=1)
    by_schedule = [[v - 7 for v in view_order(bytes([i]) * 16, 10, 1, 0) if v >= 7] for i in range(50)]
    assert (by_numbers == by_schedule).all(axis=1).mean() < 0.5


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"a seed must be in \[0, 2\*\*63\)"):
        draw(ViewPolicy(), bytes(16), 1, seed)
    with pytest.raises(ValueError, match=r"a seed must be in"):
        view_order(bytes(16), 4, 0, seed)


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("crop_area_min", value) for value in (0.0, -0.1, 1.01, NAN)],
        *[("crop_ratio_max", value) for value in (0.99, 0.0, -1.0, NAN, float("inf"))],
        *[("hflip_probability", value) for value in (-0.01, 1.01, NAN)],
        *[("vflip_probability", value) for value in (-0.01, 1.01)],
        *[("brightness", value) for value in (-0.01, 1.01, NAN)],
        *[("contrast", value) for value in (-0.01, 1.01)],
        *[("saturation", value) for value in (-0.01, 1.01)],
        ("geometry", "stretch"),
    ],
)
def test_a_policy_out_of_range_is_refused_with_the_value_it_got(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        ViewPolicy(**{name: value})
    assert str(value) in str(caught.value)


@given(policy=policies())
def test_a_policy_comes_back_from_its_identity_exactly(policy: ViewPolicy) -> None:
    identity = policy.to_identity()
    assert ViewPolicy.from_identity(identity) == policy
    assert not any(isinstance(value, float) for value in identity.values()), "decimal texts of floats are not exact"


def test_whole_numbers_given_for_shares_are_the_same_policy() -> None:
    whole, exact = ViewPolicy(brightness=0, crop_ratio_max=1), ViewPolicy(brightness=0.0, crop_ratio_max=1.0)
    assert whole.to_identity() == exact.to_identity()
    assert ViewPolicy.from_identity(whole.to_identity()) == exact


@given(policy=policies(), other=policies())
@settings(max_examples=30)
def test_identities_are_equal_only_for_equal_policies(policy: ViewPolicy, other: ViewPolicy) -> None:
    assert (policy.to_identity() == other.to_identity()) == (policy == other)


def test_each_setting_is_part_of_the_identity() -> None:
    changes = {field.name: 0.75 for field in dataclasses.fields(ViewPolicy)}
    changes |= {"crop_ratio_max": 1.5, "quarter_turns": False, "geometry": "pad"}
    identities = [ViewPolicy().to_identity()]
    identities += [ViewPolicy(**{name: value}).to_identity() for name, value in changes.items()]
    assert len({tuple(sorted(identity.items())) for identity in identities}) == len(changes) + 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"draw_version": 2}, "draw_version 2; this version renders 1"),
        ({"interpolation": "bicubic"}, "'bicubic'"),
        ({"hue": "0x0p+0"}, "unknown view settings: hue"),
        ({"geometry": "stretch"}, "geometry must be"),
        ({"contrast": "0x1p+3"}, r"contrast must be in \[0, 1\], got 8"),
        ({"contrast": "much"}, "contrast|hexadecimal"),
    ],
)
def test_views_of_another_version_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ViewPolicy.from_identity(ViewPolicy().to_identity() | change)


@pytest.mark.parametrize("name", ["draw_version", "interpolation", "contrast", "geometry"])
def test_an_identity_that_lacks_a_setting_is_refused(name: str) -> None:
    identity = ViewPolicy().to_identity()
    del identity[name]
    with pytest.raises(ValueError, match=name):
        ViewPolicy.from_identity(identity)
