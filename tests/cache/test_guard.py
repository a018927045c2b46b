import h5py
import numpy as np
import pytest

from cache import CacheError, CacheReader
from cache.errors import CacheDamaged, CacheNewer, CacheNotFound
from cache.guard import _check_bounds
from cache.layout import Extent, Spec


def refused(path, reason):
    with pytest.raises(CacheDamaged, match=reason) as caught:
        CacheReader(path)
    assert path.name in str(caught.value)
    assert "softlabel cache build" in str(caught.value)


def test_a_copy_by_h5py_is_still_a_cache(make, sealed, tmp_path):
    copy = make.rewrite(sealed, tmp_path / "t.h5", lambda arrays: None)
    CacheReader(copy).verify()
    assert CacheReader(copy).content_id == CacheReader(sealed).content_id


def swap(array):
    array[[0, 1]] = array[[1, 0]]


def drop_a_view(arrays):
    last = len(arrays["rows/view"]) - 1
    for name in arrays:
        if name.startswith(("rows/", "logits/", "features/")):
            arrays[name] = arrays[name][:last]
    arrays["samples/first_row"][-1] = last


def rename_class(arrays):
    arrays["manifest"] = np.frombuffer(arrays["manifest"].tobytes().replace(b'"bkl"', b'"bkm"'), "u1")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: swap(a["samples/key"]), "seal"),
        (lambda a: swap(a["rows/view"]), "seal"),
        (lambda a: swap(a["samples/name"]), "seal"),
        (rename_class, "seal"),
        (drop_a_view, "seal"),
        (lambda a: a.update({"features/embedding": a["features/embedding"].reshape(-1, 3, 2)}), "seal"),
        (lambda a: a.update({"features/other": a.pop("features/embedding")}), "crc32/features/other"),
        (lambda a: a.update({"logits/0": a["logits/0"].T.copy()}), "expected"),
        (lambda a: a.update({"logits/0": a["logits/0"].astype(">f4")}), "logits/0"),
        (lambda a: a.update({"logits/0": a["logits/0"].astype("<f8")}), "logits/0"),
        (lambda a: a.update({"logits/2": a["logits/1"]}), "crc32/logits/2"),
        (lambda a: a.update({"more": a["seal"]}), "not expected"),
        (lambda a: a.pop("seal"), "missing"),
        (lambda a: a.pop("rows/view"), "rows/view"),
        (lambda a: a.pop("crc32/logits/0"), "missing"),
        (lambda a: a.update({"samples/first_row": a["samples/first_row"][:-1]}), "first_row"),
        (lambda a: a.update({"samples/name": [b"x", b"y"]}), "samples/name"),
        (lambda a: a.update({"seal": "a text"}), "seal"),
        (lambda a: a.update({"rows/view": np.uint16(3)}), "rows/view"),
        (lambda a: a.update({"x/y/z/a/b/c": a["seal"]}), "nested"),
    ],
)
def test_guard_refuses_a_file_whose_objects_were_changed(make, sealed, tmp_path, change, reason):
    refused(make.rewrite(sealed, tmp_path / "t.h5", change), reason)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rows of logits", lambda a: swap(a["logits/0"])),
        ("one param", lambda a: a["rows/params"].__setitem__((3, 1), 0.25)),
        ("one witness", lambda a: a["rows/witness"].__setitem__((0, 0), a["rows/witness"][0, 0] ^ 1)),
    ],
)
def test_verify_refuses_changed(make, sealed, tmp_path, name, change):
    with pytest.raises(CacheDamaged, match="rows 0-"):
        CacheReader(make.rewrite(sealed, tmp_path / "t.h5", change)).verify()


@pytest.mark.parametrize(
    "options", [{"chunks": (1, 3)}, {"compression": "gzip"}, {"chunks": (2, 3), "fletcher32": True}]
)
def test_guard_refuses_chunks_and_filters(make, sealed, tmp_path, options):
    refused(make.rewrite(sealed, tmp_path / "t.h5", lambda a: None, **options), "logits/0 is chunked")


@pytest.mark.parametrize("kind", ["soft", "external", "virtual", "external storage"])
def test_guard_refuses_data_that_lies_elsewhere(make, sealed, tmp_path, kind):
    path = make.rewrite(sealed, tmp_path / "t.h5", lambda a: None)
    with h5py.File(path, "r+") as h5:
        shape = h5["logits/0"].shape
        h5.move("logits/0", "elsewhere")
        if kind == "soft":
            h5["logits/0"] = h5py.SoftLink("/elsewhere")
        elif kind == "external":
            h5["logits/0"] = h5py.ExternalLink(str(sealed), "/logits/0")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, "<f4")
            layout[:] = h5py.VirtualSource(str(sealed), "logits/0", shape)
            h5.create_virtual_dataset("logits/0", layout)
        else:
            h5.create_dataset("logits/0", shape, "<f4", external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
        del h5["elsewhere"]
    refused(path, "logits/0 is")


def test_guard_refuses_space_that_was_never_allocated(make, sealed, tmp_path):
    path = make.rewrite(sealed, tmp_path / "t.h5", lambda a: a.pop("logits/0"))
    with h5py.File(path, "r+") as h5:
        h5.create_dataset("logits/0", (3, 3), "<f4")
    refused(path, "allocated")


def test_guard_refuses_every_truncation(sealed, tmp_path):
    content = sealed.read_bytes()
    for n_bytes in [0, 1, 8, *range(50, len(content), 211), len(content) - 1]:
        path = tmp_path / "t.h5"
        path.write_bytes(content[:n_bytes])
        refused(path, "HDF5 cannot read it")


def test_guard_refuses_other_files_untouched(tmp_path):
    (tmp_path / "text.h5").write_text("mel,nv\n" * 100)
    refused(tmp_path / "text.h5", "HDF5 cannot read it")
    with h5py.File(tmp_path / "foreign.h5", "w") as h5:
        h5["logits"] = np.zeros((3, 4))
    refused(tmp_path / "foreign.h5", "no object manifest")
    with pytest.raises(CacheNotFound, match="softlabel cache build") as caught:
        CacheReader(tmp_path / "none.h5")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(CacheError, match="is a folder, expected a cache file"):
        CacheReader(tmp_path)


def test_guard_refuses_a_bit_flip_in_any_object(make, sealed, tmp_path):
    rng = np.random.default_rng(3)
    for name, (start, n_bytes) in make.offsets(sealed).items():
        for byte in {0, n_bytes - 1, *rng.integers(0, n_bytes, 4).tolist()}:
            flipped = make.flip(sealed, tmp_path / "t.h5", start + byte, int(rng.integers(8)))
            with pytest.raises(CacheDamaged) as caught:
                CacheReader(flipped).verify()
            if name.startswith(("rows/params", "rows/witness", "logits", "features")):
                assert f"{name} rows 0-" in str(caught.value)


def test_a_bit_flip_in_the_metadata_is_refused_or_changes_nothing(make, sealed, tmp_path):
    rng = np.random.default_rng(4)
    data = np.zeros(sealed.stat().st_size, bool)
    for start, n_bytes in make.offsets(sealed).values():
        data[start : start + n_bytes] = True
    table, n_refused = make.table(), 0
    for byte in rng.choice(np.flatnonzero(~data), 150, replace=False):
        flipped = make.flip(sealed, tmp_path / "t.h5", int(byte), int(rng.integers(8)))
        try:
            CacheReader(flipped).verify()
        except CacheDamaged:
            n_refused += 1
        else:
            make.assert_equal(CacheReader(flipped).table(), table)
    assert n_refused > 50


@pytest.mark.parametrize(("shape", "offset"), [((2, 4), 93), ((2, 4), -1), ((2**40, 2**40), 0)])
def test_guard_refuses_an_object_beyond_the_end_of_the_file(shape, offset):
    _check_bounds({"logits/0": Extent(Spec(np.dtype("|u1"), (2, 4)), 92)}, 100)
    with pytest.raises(CacheDamaged, match=r"logits/0 ends at byte .* of a file of 100"):
        _check_bounds({"logits/0": Extent(Spec(np.dtype("|u1"), shape), offset)}, 100)


def test_a_later_format_with_other_objects_asks_for_an_update(make, sealed, tmp_path):
    def later(objects):
        text = objects["manifest"].tobytes().replace(b'"format":1', b'"format":2')
        objects["manifest"] = np.frombuffer(text, np.uint8)
        objects["rows/text"] = np.zeros(3, np.uint8)

    with pytest.raises(CacheNewer, match=r"t\.h5: it has format 2, .* update softlabel") as caught:
        CacheReader(make.rewrite(sealed, tmp_path / "t.h5", later))
    assert "rebuild" not in str(caught.value)


def test_a_type_that_numpy_shows_as_another_is_refused(make, sealed, tmp_path):
    brain_float = h5py.h5t.IEEE_F32LE.copy()
    brain_float.set_fields(15, 7, 8, 0, 7)
    brain_float.set_size(2)
    arrays = make.objects(sealed)
    with h5py.File(tmp_path / "t.h5", "x") as h5:
        for name, array in arrays.items():
            if name != "logits/0":
                h5[name] = array
        space = h5py.h5s.create_simple(arrays["logits/0"].shape)
        h5py.h5d.create(h5["logits"].id, b"0", brain_float, space).write(h5py.h5s.ALL, h5py.h5s.ALL, arrays["logits/0"])
    with pytest.raises(CacheDamaged, match="logits/0 is stored as another type"):
        CacheReader(tmp_path / "t.h5")


def test_a_feature_without_a_proper_name_is_refused(make, sealed, tmp_path):
    def renamed(objects):
        for name in ("features/embedding", "crc32/features/embedding"):
            objects[name.replace("embedding", "a b")] = objects.pop(name)

    with pytest.raises(CacheDamaged, match=r"'features/a b' is no name of a feature"):
        CacheReader(make.rewrite(sealed, tmp_path / "t.h5", renamed))


def test_links_that_multiply_objects_are_refused_at_once(tmp_path):
    with h5py.File(tmp_path / "t.h5", "x") as h5:
        inner = h5.create_group("deepest")
        for level in range(3):
            outer = h5.create_group(f"level{level}")
            for number in range(200):
                outer[str(number)] = inner
            inner = outer
    with pytest.raises(CacheDamaged, match="more than 10,000 objects"):
        CacheReader(tmp_path / "t.h5")
