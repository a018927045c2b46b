import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import CacheReader, verify
from cache.errors import CacheDamaged, CacheNotFound


def test_verify_names_the_damaged_blocks_of_512_rows(make, tmp_path):
    table = make.table(n_samples=500, max_views=5, names=False)
    path = make.write(tmp_path / "t.h5", table)
    assert CacheReader(path).damaged_blocks() == []
    CacheReader(path).verify()
    n_rows, offsets = len(table.view), make.offsets(path)
    assert n_rows > 1024
    for name, row, row_bytes in [("rows/params", 0, 12), ("logits/0", 512, 12), ("features/embedding", n_rows - 1, 12)]:
        make.flip(path, path, offsets[name][0] + row * row_bytes, 7)
    last = (n_rows - 1) // 512 * 512
    assert CacheReader(path).damaged_blocks() == [
        ("features/embedding", last, n_rows - 1),
        ("logits/0", 512, 1023),
        ("rows/params", 0, 511),
    ]
    with pytest.raises(CacheDamaged, match=r"3 blocks: .*logits/0 rows 512-1023"):
        CacheReader(path).verify()


@given(st.integers(1, 40), st.integers(0, 20), st.sampled_from([1, 2, 4, 8]), st.randoms(use_true_random=False))
def test_the_crcs_of_blocks_make_that_of_all_their_bytes(block_bytes, n_all, n_joined, random):
    blocks = [random.randbytes(block_bytes) for _ in range(n_all)]
    joined = verify.joined_crcs(np.array([zlib.crc32(block) for block in blocks], "<u4"), block_bytes, n_joined)
    starts = range(0, n_all - n_joined + 1, n_joined)
    assert joined.tolist() == [zlib.crc32(b"".join(blocks[start : start + n_joined])) for start in starts]


def test_damage_is_found_in_whichever_of_some_blocks_it_is(make, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "_SPAN_BYTES", 4 * 512 * 12)
    path = make.write(tmp_path / "t.h5", make.table(n_samples=2500, max_views=5, names=False))
    n_rows, start = CacheReader(path).n_rows, make.offsets(path)["logits/0"][0]
    assert n_rows > 4 * 2 * 512, "more than two spans of four blocks, and a rest"
    assert CacheReader(path).damaged_blocks() == []
    for row in range(100, n_rows, 512):
        damaged = make.flip(path, tmp_path / "damaged.h5", start + row * 12, 3)
        first = row // 512 * 512
        assert CacheReader(damaged).damaged_blocks() == [("logits/0", first, min(first + 511, n_rows - 1))]


def test_verify_does_not_trust_a_damaged_crc_table(make, sealed, tmp_path):
    start, _ = make.offsets(sealed)["crc32/logits/0"]
    flipped = make.flip(sealed, tmp_path / "t.h5", start, 0)
    with pytest.raises(CacheDamaged, match="seal"):
        CacheReader(flipped).damaged_blocks()


def test_verify_looks_again_at_the_tables_of_a_file_that_was_written_to(make, sealed, tmp_path):
    path = tmp_path / "t.h5"
    path.write_bytes(sealed.read_bytes())
    reader = CacheReader(path)
    make.flip(path, path, make.offsets(path)["samples/key"][0], 0)
    with pytest.raises(CacheDamaged, match="written over"):
        reader.verify()


def test_damaged_rows_have_no_content_id(make, sealed, tmp_path):
    damaged = make.flip(sealed, tmp_path / "t.h5", make.offsets(sealed)["logits/0"][0], 0)
    with pytest.raises(CacheDamaged, match=r"logits/0 rows 0-"):
        _ = CacheReader(damaged).content_id


def test_verify_says_that_a_file_is_missing(tmp_path):
    with pytest.raises(CacheNotFound):
        CacheReader(tmp_path / "none.h5").verify()


def test_verify_notices_bytes_where_no_object_is_and_after_the_end(make, tmp_path):
    table = make.table(n_samples=4000)
    path = make.write(tmp_path / "t.h5", table)
    taken = sorted(make.offsets(path).values())
    ends = [start + size for start, size in taken]
    gap = next(end for end, (after, _) in zip(ends, taken[1:], strict=False) if after - end > 900)
    flipped = make.flip(path, tmp_path / "gap.h5", gap + 700, 5)
    with pytest.raises(CacheDamaged, match=rf"unused bytes {gap}-"):
        CacheReader(flipped).verify()
    longer = tmp_path / "longer.h5"
    longer.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(CacheDamaged, match="unused bytes"):
        CacheReader(longer).verify()
