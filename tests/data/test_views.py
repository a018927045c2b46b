"""Views: the same key, view index and seed give the same numbers for ever, and the identity holds the policy."""

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

from data.views import CLEAN_ROW, COLUMNS, ViewPolicy, draw, view_orders

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


def hex_of(row: NDArray[np.float32]) -> str:
    return row.astype("<f4").tobytes().hex()


def test_draw_version_1_gives_the_same_rows_for_ever() -> None:
    """The rows of every cache of draw version 1: if this fails, the draw version must go up, not the hash."""
    rows = [draw(ViewPolicy(), *arguments) for arguments in GOLDEN_DRAWS]
    assert len(rows) == 20
    assert tuple(hex_of(rows[i]) for i in (0, 5, 14)) == GOLDEN_FIRST_ROWS
    assert hashlib.sha256(b"".join(row.astype("<f4").tobytes() for row in rows)).hexdigest() == GOLDEN_ROWS_SHA256


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


@given(policy=policies(), key=keys, seed=seeds)
def test_view_0_is_clean_under_every_policy(policy: ViewPolicy, key: bytes, seed: int) -> None:
    np.testing.assert_array_equal(draw(policy, key, 0, seed), CLEAN_ROW)


def test_the_clean_row_cannot_be_changed_through_a_drawn_one() -> None:
    draw(ViewPolicy(), bytes(16), 0, 0)[0] = 0.5
    assert CLEAN_ROW.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]


def view_order(key: bytes, views: int, cycle: int, run_seed: int) -> np.ndarray:
    """The order of one sample's views."""
    return view_orders(np.frombuffer(key, np.uint8)[None], views, cycle, run_seed)[0]


@given(key=keys, n_views=st.integers(1, 40), cycle=st.integers(0, 1000), seed=seeds)
def test_the_order_is_that_of_the_numbers_of_numpys_generator(key: bytes, n_views: int, cycle: int, seed: int) -> None:
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"), counter=[0, 1, cycle, seed]))
    expected = np.argsort(generator.random(n_views), kind="stable")
    np.testing.assert_array_equal(view_order(key, n_views, cycle, seed), expected)


@given(key=keys, n_views=st.integers(1, 40), cycle=st.integers(0, 1000), seed=seeds)
def test_a_cycle_shows_each_view_once(key: bytes, n_views: int, cycle: int, seed: int) -> None:
    order = view_order(key, n_views, cycle, seed)
    assert order.dtype == np.uint16
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
