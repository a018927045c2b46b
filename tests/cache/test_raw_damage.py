"""A valid cache with bits flipped, bytes lost or raw metadata changed: every damage is refused, in one line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

BIG = ("rows/params", "rows/witness", "logits/0", "logits/1", "features/embedding")


@pytest.mark.parametrize("name", ["logits/0", "features/embedding", "rows/params"])
def test_a_shape_that_was_transposed_in_the_raw_metadata_is_refused_at_opening(
    make, long_cache, tmp_path, name, refusal_at_opening
):
    content = long_cache.read_bytes()
    shape = make.objects(long_cache)[name].shape
    declared, transposed = (np.array(axes, "<u8").tobytes() for axes in (shape, shape[::-1]))
    assert content.count(declared) >= 1
    (tmp_path / "t.h5").write_bytes(content.replace(declared, transposed))
    assert "HDF5 cannot read it" in refusal_at_opening(tmp_path / "t.h5")


@pytest.fixture(scope="module")
def bytes_of_objects(make, long_cache):
    """(object, first byte, number of bytes) of all objects."""
    return [(name, *span) for name, span in sorted(make.offsets(long_cache).items())]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """One file name for all examples of a property."""
    return tmp_path_factory.mktemp("scratch") / "t.h5"


@settings(max_examples=200, deadline=None, database=None)
@given(data=st.data())
def test_any_bit_flipped_in_any_object_is_refused(
    long_table, long_cache, bytes_of_objects, scratch, data, refusal, refusal_at_opening
):
    name, start, n_bytes = data.draw(st.sampled_from(bytes_of_objects))
    byte, bit = data.draw(st.integers(0, n_bytes - 1)), data.draw(st.integers(0, 7))
    content = bytearray(long_cache.read_bytes())
    content[start + byte] ^= 1 << bit
    scratch.write_bytes(content)
    message = refusal(scratch) if name in BIG else refusal_at_opening(scratch)
    if name in BIG:
        row = byte // (n_bytes // len(long_table.view))
        assert f"1 block: {name} rows {row // 512 * 512}-" in message


@settings(max_examples=100, deadline=None, database=None)
@given(data=st.data())
def test_any_truncation_is_refused_at_opening(long_cache, scratch, data, refusal_at_opening):
    content = long_cache.read_bytes()
    scratch.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refusal_at_opening(scratch)
