"""What is no file, what claims more than it has, what is sealed and still no cache: refused at once, in one line."""

import errno
import os
import socket

import h5py
import numpy as np
import pytest

from cache import CacheReader
from cache.errors import CacheDamaged, CacheError
from cache.guard import MAX_TABLE_BYTES, _check_tables
from cache.layout import Spec


def fit_seal(arrays):
    """CRCs and a seal that fit, by the script of the campaign, which asks no code of ours."""
    from reliability.strange import fit_seal

    fit_seal(arrays)


@pytest.fixture
def remade(make, sealed, tmp_path):
    """`remade(change)`: the sealed file with changed objects and a seal that fits."""

    def remade(change):
        def both(arrays):
            change(arrays)
            fit_seal(arrays)

        return make.rewrite(sealed, tmp_path / "t.h5", both)

    return remade


def made(kind, path):
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to itself":
        path.symlink_to(path.name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "link to itself"])
def test_what_is_no_file_is_refused_without_waiting_for_it(monkeypatch, tmp_path, kind):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    made(kind, tmp_path.joinpath("t.h5").relative_to(tmp_path))
    with pytest.raises(CacheError, match=r"cannot open .*t\.h5: (it is no regular file|.*links)") as caught:
        CacheReader("t.h5")
    assert not isinstance(caught.value, CacheDamaged)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_file_that_becomes_a_fifo_is_not_waited_for(sealed, make, tmp_path):
    reader = CacheReader(make.rewrite(sealed, tmp_path / "t.h5", lambda arrays: None))
    (tmp_path / "t.h5").unlink()
    os.mkfifo(tmp_path / "t.h5")
    with pytest.raises(CacheError, match="no regular file"):
        reader.logits([0])


def test_a_file_that_may_not_be_read_is_told(monkeypatch, sealed):
    def denied(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(CacheError, match=r"cannot open .*t\.h5: Permission denied"):
        CacheReader(sealed)


def test_bytes_behind_the_end_change_nothing_and_are_told_by_verify(make, sealed, tmp_path):
    (tmp_path / "t.h5").write_bytes(sealed.read_bytes() + b"more")
    make.assert_equal(CacheReader(tmp_path / "t.h5").table(), CacheReader(sealed).table())
    with pytest.raises(CacheDamaged, match="unused bytes"):
        CacheReader(tmp_path / "t.h5").verify()


def giant(path, n_samples, name_bytes=8):
    """A sparse file whose objects lie where they say, in a hole of the disk."""
    specs = {
        "manifest": ("u1", (100,)), "samples/key": ("u1", (n_samples, 16)),
        "samples/name": (f"S{name_bytes}", (n_samples,)),
        "samples/first_row": ("<u8", (n_samples + 1,)), "rows/view": ("<u2", (n_samples,)), "seal": ("u1", (32,)),
        "rows/witness": ("u1", (n_samples, 12)), "logits/0": ("<f4", (n_samples, 2)),
        "crc32/rows/witness": ("<u4", (-(-n_samples // 512),)), "crc32/logits/0": ("<u4", (-(-n_samples // 512),)),
    }  # fmt: skip
    with h5py.File(path, "x") as h5:
        for name, (dtype, shape) in specs.items():
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
            link.set_create_intermediate_group(True)
            space = h5py.h5s.create_simple(shape)
            h5py.h5d.create(h5.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, dcpl=plist, lcpl=link)


@pytest.mark.parametrize(
    ("n_samples", "name_bytes", "reason"),
    [
        (2**34, 8, r"its tables have [\d,]+ bytes, expected at most 4,294,967,296"),
        (2**24, 8, r"its tables claim [\d,]+ bytes of a file that has [\d,]+ on its disk"),
        (2**17, 1, "samples/first_row is empty from byte|samples/key is empty from byte"),
        (64, 5000, "its names are 5,000 bytes long, expected at most 4,096"),
    ],
)
def test_a_sparse_file_is_refused_before_it_costs_memory(tmp_path, n_samples, name_bytes, reason):
    tracemalloc = pytest.importorskip("tracemalloc")
    giant(tmp_path / "t.h5", n_samples, name_bytes)
    if n_samples == 2**34:
        assert os.path.getsize(tmp_path / "t.h5") > 1e12 * 0.7
    tracemalloc.start()
    with pytest.raises(CacheDamaged, match=reason):
        CacheReader(tmp_path / "t.h5")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_ten_million_samples_with_8_views_are_within_the_limit(sealed):
    n_samples, n_rows = 10**7, 8 * 10**7
    specs = {
        "samples/key": Spec(np.dtype("u1"), (n_samples, 16)), "samples/first_row": Spec(np.dtype("<u8"), (n_samples,)),
        "samples/name": Spec(np.dtype("S300"), (n_samples,)), "rows/view": Spec(np.dtype("<u2"), (n_rows,)),
        "crc32/logits/0": Spec(np.dtype("<u4"), (n_rows // 512,)), "logits/0": Spec(np.dtype("<f4"), (n_rows, 1000)),
    }  # fmt: skip
    assert 3.3e9 < sum(spec.n_bytes for name, spec in specs.items() if name != "logits/0") < MAX_TABLE_BYTES
    with open(sealed, "rb", buffering=0) as file, pytest.raises(CacheDamaged, match="on its disk"):
        _check_tables(file, specs)  # of this small file it is refused for another reason alone


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["logits/1", "rows/params", "features/embedding"])
def test_a_number_that_is_none_is_refused_by_a_complete_check_although_it_is_sealed(remade, name, value):
    path = remade(lambda arrays: arrays[name].__setitem__((4, 1), value))
    reader = CacheReader(path)
    with pytest.raises(CacheDamaged, match=rf"{name} is not finite in row 4 .*softlabel cache build") as caught:
        reader.verify()
    assert str(caught.value).isprintable()
    with pytest.raises(CacheDamaged, match="not finite"):
        reader.verify_objects([name])
    reader.verify_objects([other for other in ("logits/0", "logits/1", "rows/params") if other != name])


def test_the_largest_finite_numbers_are_finite(remade):
    def extreme(arrays):
        arrays["logits/0"][0] = np.finfo("f4").max, np.finfo("f4").min, np.finfo("f4").smallest_subnormal
        arrays["features/embedding"][0, 0] = np.finfo("f2").max, np.finfo("f2").min, -0.0

    CacheReader(remade(extreme)).verify()


@pytest.mark.parametrize("name", [b"/etc/passwd", b"../../x.jpg", b"\x1b]0;owned\x07", b"\xff", b"a\nError: b"])
def test_odd_names_open_here_as_they_are_for_people(remade, name):
    def rename(arrays):
        arrays["samples/name"] = np.array([name, *arrays["samples/name"].tolist()[1:]])

    CacheReader(remade(rename)).verify()
