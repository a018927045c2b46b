"""docs/format.md is enough to read and to write a cache: a second reader that follows the page agrees with ours."""

import hashlib
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache import CacheReader, Manifest, Table, merge
from cache.errors import CacheDamaged, CacheError
from cache.layout import is_big

GOLDEN = Path(__file__).with_name("golden_format_1.cache")


def rows_of(n_samples, n_classes, seed=5):
    """A table and its manifest: tasks of 3 and of `n_classes` classes, two features, neither params nor names."""
    rng = np.random.default_rng(seed)
    key = np.unique(rng.integers(0, 256, (n_samples, 16), dtype=np.uint8), axis=0)
    views = [np.sort(rng.choice(65_536, rng.integers(1, 4), replace=False)) for _ in key]
    n_rows = sum(map(len, views))
    logits_dtype = "<f4" if n_classes <= 256 else "<f2"
    table = Table(
        key=key,
        first_row=np.cumsum([0, *map(len, views)]).astype("<u8"),
        view=np.concatenate(views).astype("<u2"),
        params=np.empty((n_rows, 0), "<f4"),
        witness=rng.integers(0, 256, (n_rows, 12), dtype=np.uint8),
        logits={
            "class": rng.normal(size=(n_rows, 3)).astype("<f4"),
            "site": rng.normal(size=(n_rows, n_classes)).astype(logits_dtype),
        },
        features={"embedding": rng.normal(size=(n_rows, 7)).astype("<f2"), "entropy": rng.random(n_rows).astype("<f2")},
    )
    sites = [f"site {i}" for i in range(n_classes)]
    tasks = [{"name": "class", "classes": ["a", "b", "c"]}, {"name": "site", "classes": sites}]
    return table, Manifest({"tasks": tasks, "view_columns": []}, {"note": "ü \x7f 😀 /", "x": [1e-7, 1e16, 0.1, 2.0]})


def write_by_the_page(second, path, objects):
    """A cache written by plain h5py: CRC tables and seal as the page has them, offsets and metadata as h5py likes."""
    for name in [name for name in objects if second.is_big(name)]:
        blocks = [objects[name][at : at + 512].tobytes() for at in range(0, len(objects[name]), 512)]
        objects[f"crc32/{name}"] = np.array([zlib.crc32(block) for block in blocks], "<u4")
    sealed = b"".join(second.part(n, a, not second.is_big(n)) for n, a in sorted(objects.items()) if n != "seal")
    objects["seal"] = np.frombuffer(hashlib.sha256(sealed).digest(), "u1")
    with h5py.File(path, "x") as h5:
        for name, array in objects.items():
            h5.create_dataset(name, data=array)
    return path


def assert_both_readers_agree(second, path):
    ours, theirs = CacheReader(path), second.Cache(path)
    ours.verify()
    for name in ("recipe_id", "cache_id", "content_id"):
        assert getattr(theirs, name) == getattr(ours, name)
    assert theirs.objects["seal"].tobytes() == ours.seal
    assert theirs.objects["manifest"].tobytes() == ours.manifest.to_bytes()
    assert theirs.rows == {pair: row for row, pair in enumerate(sorted(ours.pairs()))}
    expected = ours.dims.specs()
    assert set(theirs.objects) == set(expected)
    for name, array in theirs.objects.items():
        assert (array.dtype.str, array.shape) == (expected[name].dtype.str, expected[name].shape)
    table = ours.table()
    for name, array in table.objects().items():
        assert theirs.objects[name].tobytes() == array.tobytes(), name
    if table.names is not None:
        stored = theirs.objects["samples/name"].tolist()
        assert [name.decode("utf-8", "surrogateescape") for name in stored] == table.names
    return theirs


def test_the_second_reader_reads_the_golden_file(second):
    assert len(assert_both_readers_agree(second, GOLDEN).rows) == 8


@pytest.mark.parametrize("names", [True, False])
def test_the_second_reader_reads_what_the_writer_writes(make, second, tmp_path, names):
    table = make.table(n_samples=40, names=names)
    if names:
        table.names[:2] = ["mel/not \udcff UTF-8", ""]
    built = make.build(tmp_path / "t.h5", table, segment_rows=9)
    theirs = assert_both_readers_agree(second, built.path)
    assert ("samples/name" in theirs.objects) == names
    assert theirs.content_id == second.Cache(make.write(tmp_path / "at_once.h5", table)).content_id


@pytest.mark.parametrize(("n_classes", "dtype"), [(256, "<f4"), (257, "<f2")])
def test_the_second_reader_reads_many_rows_and_classes(make, second, tmp_path, n_classes, dtype):
    table, manifest = rows_of(600, n_classes)
    theirs = assert_both_readers_agree(second, make.write(tmp_path / "t.h5", table, manifest))
    assert theirs.objects["logits/1"].dtype.str == dtype
    assert len(theirs.objects["crc32/logits/1"]) == 3
    assert theirs.objects["features/entropy"].ndim == 1
    assert "rows/params" not in theirs.objects


def test_the_second_reader_reads_more_tasks_than_digits(make, second, tmp_path):
    table, manifest = rows_of(3, 2)
    logits = {f"task {i}": np.full((len(table.view), i + 1), i, "<f4") for i in range(12)}
    tasks = [{"name": name, "classes": [f"c{i}" for i in range(a.shape[1])]} for name, a in logits.items()]
    manifest = Manifest(manifest.identity | {"tasks": tasks}, {})
    table = Table(
        **{name: getattr(table, name) for name in ("key", "first_row", "view", "params", "witness")}, logits=logits
    )
    assert_both_readers_agree(second, make.write(tmp_path / "t.h5", table, manifest))


def test_the_second_reader_finds_a_row_by_the_bytes_of_an_image_file(second, tiny_data, tiny_cache):
    theirs, ours = assert_both_readers_agree(second, tiny_cache), CacheReader(tiny_cache)
    for sample in (0, len(ours) - 1):
        image_file = (tiny_data / ours.names[sample]).read_bytes()
        for row, view in zip(range(ours.n_rows)[ours.rows_of(sample)], ours.views_of(sample), strict=True):
            found = theirs.row(image_file, int(view))
            assert found["logits/0"].tolist() == ours.logits(row).tolist()
            assert found["rows/params"].tolist() == ours.params(row).tolist()
            assert found["rows/witness"].tolist() == ours.witness(row).tolist()
            assert found["features/embedding"].tolist() == ours.feature(row).tolist()
        with pytest.raises(KeyError):
            theirs.row(image_file, 9)
        with pytest.raises(KeyError):
            theirs.row(image_file + b"\0", 0)


def test_the_second_reader_refuses_a_bit_flip_in_any_object(make, second, tmp_path):
    table, manifest = rows_of(600, 257)
    rng = np.random.default_rng(6)
    for source in (GOLDEN, make.write(tmp_path / "t.h5", table, manifest)):
        for name, (start, n_bytes) in make.offsets(source).items():
            for byte in {0, int(rng.integers(n_bytes)), n_bytes - 1}:
                flipped = make.flip(source, tmp_path / "flipped.h5", start + byte, int(rng.integers(8)))
                reason = f"CRCs of {name} are" if is_big(name) else "seal"
                with pytest.raises(ValueError, match=reason):
                    second.Cache(flipped)


def test_a_cache_that_plain_h5py_writes_after_the_page_is_a_cache(second, tmp_path):
    image_files = sorted(
        [b"one", b"two", b"three"], key=lambda content: hashlib.blake2b(content, digest_size=16).digest()
    )
    keys = [hashlib.blake2b(content, digest_size=16).digest() for content in image_files]
    identity = '"identity":{"tasks":[{"classes":["mel","nv"],"name":"class"}],"view_columns":["turns"]}'
    logits = np.arange(8, dtype="<f4").reshape(4, 2)
    path = write_by_the_page(
        second,
        tmp_path / "t.h5",
        {
            "manifest": np.frombuffer(f'{{"format":1,{identity},"provenance":{{}}}}'.encode(), "u1"),
            "samples/key": np.frombuffer(b"".join(keys), "u1").reshape(3, 16),
            "samples/first_row": np.array([0, 1, 3, 4], "<u8"),
            "samples/name": np.array([b"a/1.png", b"", b"b"], "S7"),
            "rows/view": np.array([0, 0, 7, 65_535], "<u2"),
            "rows/params": np.zeros((4, 1), "<f4"),
            "rows/witness": np.zeros((4, 12), "u1"),
            "logits/0": logits,
            "features/embedding": np.ones((4, 5), "<f2"),
        },
    )
    theirs, ours = assert_both_readers_agree(second, path), CacheReader(path)
    assert ours.names == ["a/1.png", "", "b"]
    assert theirs.row(image_files[1], 7)["logits/0"].tolist() == ours.logits(2).tolist() == [4, 5]
    assert merge([path], tmp_path / "merged.h5").content_id == theirs.content_id


def with_manifest(change):
    def changed(objects):
        text = objects["manifest"].tobytes().decode()
        assert change(text) != text
        objects["manifest"] = np.frombuffer(change(text).encode(), "u1")

    return changed


def in_place(name, index, value):
    def changed(objects):
        objects[name] = objects[name].copy()
        assert objects[name][index].tolist() != value
        objects[name][index] = value

    return changed


def without_rows(objects):
    objects["samples/first_row"] = np.array([0, 0, 6, 8], "<u8")
    objects["rows/view"] = np.arange(8, dtype="<u2")


SEALED_BUT_WRONG = [
    ("keys descend", lambda o: o.update({"samples/key": o["samples/key"][::-1]}), "sorted"),
    ("a key twice", lambda o: o.update({"samples/key": o["samples/key"][[0, 0, 2]]}), "unique"),
    ("rows before the first", in_place("samples/first_row", 0, 1), "first_row"),
    ("rows behind the last", in_place("samples/first_row", 3, 9), "first_row"),
    ("rows off by one", lambda o: o.update({"samples/first_row": o["samples/first_row"] + np.uint64(1)}), "first_row"),
    ("a sample without rows", without_rows, "first_row"),
    ("views descend", in_place("rows/view", 0, 6), "ascend"),
    ("a view twice", in_place("rows/view", 0, 5), "ascend"),
    ("white space", with_manifest(lambda text: text.replace(",", ", ", 1)), "canonical"),
    (
        "another order",
        with_manifest(lambda text: text.replace('"host":"here","wall_s":1.5', '"w":1,"a":2')),
        "canonical",
    ),
    ("another number", with_manifest(lambda text: text.replace("1.5", "1.50")), "canonical"),
    ("no ASCII", with_manifest(lambda text: text.replace(r"\u00e9", "é")), "canonical"),
    ("a field twice", with_manifest(lambda text: text.replace('"host":', '"host":1,"host":')), "twice"),
    ("no number", with_manifest(lambda text: text.replace("1.5", "NaN")), "NaN"),
    ("a later format", with_manifest(lambda text: text.replace('"format":1', '"format":2')), "update softlabel"),
]


@pytest.mark.parametrize(
    ("change", "reason"), [case[1:] for case in SEALED_BUT_WRONG], ids=[c[0] for c in SEALED_BUT_WRONG]
)
def test_both_readers_refuse_a_sealed_file_that_breaks_a_rule(make, second, tmp_path, change, reason):
    objects = make.objects(GOLDEN)
    change(objects)
    path = write_by_the_page(second, tmp_path / "t.h5", objects)
    with pytest.raises(CacheError, match=reason):
        CacheReader(path)
    with pytest.raises(ValueError, match=r"^(?!.*(seal|CRC))"):
        second.Cache(path)


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}, {"userblock_size": 512}])
def test_another_container_holds_the_same_cache(make, second, tmp_path, options):
    path = tmp_path / "t.h5"
    with h5py.File(path, "x", **options) as h5:
        for name, array in make.objects(GOLDEN).items():
            h5.create_dataset(name, data=array)
        h5.attrs["note"] = h5.create_group("nothing").name
    assert assert_both_readers_agree(second, path).content_id == CacheReader(GOLDEN).content_id
    assert CacheReader(path).seal == CacheReader(GOLDEN).seal


SEALED_BUT_NOT_OF_THE_LAYOUT = [
    ("an object more", lambda o: o.update({"rows/more": o["rows/view"]}), "not expected: .*rows/more"),
    ("a task too few", lambda o: o.pop("logits/1"), "manifest names"),
    ("float64 logits", lambda o: o.update({"logits/0": o["logits/0"].astype("<f8")}), "logits/0"),
    ("float16 logits of few classes", lambda o: o.update({"logits/0": o["logits/0"].astype("<f2")}), "logits/0"),
    ("big-endian logits", lambda o: o.update({"logits/0": o["logits/0"].astype(">f4")}), "logits/0"),
    ("float32 features", lambda o: o.update({"features/embedding": o["features/embedding"].astype("<f4")}), "features"),
    ("params too few", lambda o: o.update({"rows/params": o["rows/params"][:, :2]}), "rows/params has 2 columns"),
    ("a float in the identity", with_manifest(lambda text: text.replace('"fp32"', "1.0")), "write it as text"),
    ("no tasks", with_manifest(lambda text: text.replace('"tasks"', '"tasky"')), "identity.tasks"),
    ("two classes of one name", with_manifest(lambda text: text.replace('"nv"', '"mel"')), "twice"),
    ("two columns of one name", with_manifest(lambda text: text.replace('["x","y"', '["x","x"')), "twice"),
    ("a number too large", with_manifest(lambda text: text.replace("1.5", str(2**53))), "53 bits"),
    ("half a surrogate pair", with_manifest(lambda text: text.replace(r"\u00e9", r"\ud800")), "surrogate"),
    ("a fourth field", with_manifest(lambda text: text.replace("}}", '},"more":1}')), "exactly format, identity"),
]


@pytest.mark.parametrize(
    ("change", "reason"),
    [case[1:] for case in SEALED_BUT_NOT_OF_THE_LAYOUT],
    ids=[case[0] for case in SEALED_BUT_NOT_OF_THE_LAYOUT],
)
def test_our_reader_refuses_a_sealed_file_of_another_layout(make, second, tmp_path, change, reason):
    objects = make.objects(GOLDEN)
    for name in [name for name in objects if name.startswith("crc32/")]:
        del objects[name]
    change(objects)
    with pytest.raises(CacheDamaged, match=reason):
        CacheReader(write_by_the_page(second, tmp_path / "t.h5", objects))
