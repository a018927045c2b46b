"""Keys and views are found by columns of integers as by comparing bytes, one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import search
from cache.search import KeyColumn, find_rows, owners


@st.composite
def keys(draw, beginnings=(b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + b"\0" * 7, b"\xff" * 8)):
    """Some keys; many begin alike, where `first_integers` cannot tell them apart."""
    begin = st.sampled_from(beginnings) | st.binary(min_size=8, max_size=8)
    return draw(st.lists(st.tuples(begin, st.binary(min_size=8, max_size=8)).map(b"".join), max_size=12))


def as_array(listed):
    return np.frombuffer(b"".join(listed), np.uint8).reshape(-1, 16)


@settings(max_examples=100, deadline=None, database=None)
@given(there=keys().filter(len), others=keys(), stretch=st.integers(1, 5), random=st.randoms(use_true_random=False))
def test_keys_are_found_as_by_comparing_them(there, others, stretch, random):
    there = sorted(set(there))
    asked = [*there, *others]
    random.shuffle(asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_STRETCH", stretch)
        found = KeyColumn(as_array(there)).find(as_array(asked))
    assert found.tolist() == [there.index(key) if key in there else -1 for key in asked]
    assert found.dtype == np.int64


@settings(max_examples=100, deadline=None, database=None)
@given(
    views=st.lists(st.sets(st.integers(0, 9) | st.just(65_535), min_size=1), min_size=1, max_size=6),
    stretch=st.integers(1, 40),
)
def test_rows_are_found_as_by_looking_at_all(views, stretch):
    first_row = np.cumsum([0, *map(len, views)]).astype(np.uint64)
    view = np.array([one for some in views for one in sorted(some)], np.uint16)
    rows = {(sample, one): row for row, (sample, one) in enumerate(
        (sample, one) for sample, some in enumerate(views) for one in sorted(some)
    )}  # fmt: skip
    samples, wanted = np.arange(-1, len(views) + 1)[:, None], np.array([*range(-1, 11), 65_535, 65_536, 1 << 40])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_STRETCH", stretch)
        found = find_rows(first_row, view, samples, wanted)
    expected = [[rows.get((sample, one), -1) for one in wanted.tolist()] for sample in samples[:, 0].tolist()]
    assert found.tolist() == expected
    of_rows = [sample for sample, some in enumerate(views) for _ in some]
    assert owners(first_row, np.arange(len(view))).tolist() == of_rows
