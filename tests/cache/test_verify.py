import pytest

from cache import CacheReader
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


def test_verify_does_not_trust_a_damaged_crc_table(make, sealed, tmp_path):
    start, _ = make.offsets(sealed)["crc32/logits/0"]
    flipped = make.flip(sealed, tmp_path / "t.h5", start, 0)
    with pytest.raises(CacheDamaged, match="seal"):
        CacheReader(flipped).damaged_blocks()


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
