import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache import CacheReader
from cache.errors import CacheMismatch
from cache.layout import Dims, logits_dtype, seal_of, sortable


def changed(table, **changes):
    return dataclasses.replace(table, **changes)


def test_table_refuses_broken_invariants(make):
    table = make.table()
    swapped = table.key[::-1].copy()
    nan = table.logits | {"class": np.where(np.arange(3) == 1, np.float32("nan"), table.logits["class"])}
    bad = [
        ({"key": swapped}, "sorted"),
        ({"key": np.repeat(table.key[:1], len(table.key), axis=0)}, "unique"),
        ({"key": table.key[:, :15]}, "samples/key"),
        ({"first_row": table.first_row[::-1].copy()}, "first_row"),
        ({"first_row": table.first_row.astype("<i8")}, "first_row"),
        ({"view": table.view[::-1].copy()}, "ascend"),
        ({"view": table.view[:-1]}, "expected"),
        ({"params": table.params[:-1]}, "rows/params"),
        ({"params": table.params.astype("<f8")}, "rows/params"),
        ({"witness": table.witness[:, :4]}, "rows/witness"),
        ({"logits": nan}, "not finite"),
        ({"logits": table.logits | {"class": table.logits["class"].astype("<f2")}}, "logits/0"),
        ({"features": {"embedding": np.zeros((len(table.view), 0), "<f2")}}, "zero"),
        ({"features": {"a/b": table.features["embedding"]}}, "letters"),
        ({"names": table.names[1:]}, "names"),
        ({"names": ["a\0", *table.names[1:]]}, "NUL"),
    ]
    for changes, reason in bad:
        with pytest.raises(CacheMismatch, match=reason):
            changed(table, **changes)


def test_table_refuses_another_manifest(make, tmp_path):
    for tasks in ([{"name": "class", "classes": ["a", "b", "c"]}], make.manifest().identity["tasks"][::-1]):
        with pytest.raises(CacheMismatch, match="the manifest's tasks"):
            make.write(tmp_path / "t.h5", make.table(), make.manifest(tasks=tasks))
    with pytest.raises(CacheMismatch, match="3 params, expected 1"):
        make.write(tmp_path / "t.h5", make.table(), make.manifest(view_columns=["x"]))
    assert list(tmp_path.iterdir()) == []


def test_logits_are_float32_up_to_256_classes():
    assert logits_dtype(256) == np.float32
    assert logits_dtype(257) == np.float16


def test_sortable_keys_order_as_their_bytes_do():
    rng = np.random.default_rng(0)
    key = rng.integers(0, 3, (500, 16), dtype=np.uint8) * 127
    order = np.argsort(sortable(key), kind="stable")
    assert [bytes(one) for one in key[order]] == sorted(bytes(one) for one in key)


def test_dims_and_specs_are_inverse(make):
    dims = make.table().dims(manifest_bytes=100)
    assert Dims.of(dims.specs()) == dims
    many = dataclasses.replace(dims, class_counts=tuple(range(1, 13)), name_bytes=None, n_params=0)
    assert Dims.of(many.specs()) == many


def test_seal_covers_name_dtype_and_shape(make):
    specs = make.table().dims(manifest_bytes=100).specs()
    seals = {seal_of(specs, lambda name: iter([]))}
    for change in ({"dtype": np.dtype("<i2")}, {"shape": (1, 2)}):
        seals.add(
            seal_of(specs | {"features/embedding": specs["features/embedding"]._replace(**change)}, lambda _: iter([]))
        )
    renamed = dict(specs)
    renamed["features/other"] = renamed.pop("features/embedding")
    seals.add(seal_of(renamed, lambda name: iter([])))
    assert len(seals) == 4


def test_plain_h5py_reads_the_file_as_documented(make, sealed):
    table, manifest = make.table(), make.manifest()
    found = make.objects(sealed)
    assert found["manifest"].tobytes() == manifest.to_bytes()
    assert found["logits/0"].tobytes() == table.logits["class"].tobytes()
    assert [name.decode() for name in found["samples/name"]] == table.names
    expected = table.dims(manifest_bytes=len(manifest.to_bytes())).specs()
    assert {name: (array.dtype.str, array.shape) for name, array in found.items()} == {
        name: (spec.dtype.str, spec.shape) for name, spec in expected.items()
    }
    with h5py.File(sealed, "r", locking=False) as h5:
        assert all(h5[name].chunks is None for name in found)
        assert h5["logits"]["0"][1:3].shape == (2, 3)
        assert list(h5.attrs) == []


def test_large_objects_start_on_a_page_and_small_files_stay_small(make, tmp_path):
    table = make.table(n_samples=3000, max_views=8, names=False)
    large = make.write(tmp_path / "large.h5", table)
    offsets = make.offsets(large)
    aligned = [name for name, (_, n_bytes) in offsets.items() if n_bytes >= 65536]
    assert "logits/0" in aligned
    assert not any(offsets[name][0] % 4096 for name in aligned)
    assert make.write(tmp_path / "small.h5", make.table(n_samples=1)).stat().st_size < 16_000


def test_optional_objects_are_absent(make, tmp_path):
    table = make.table(names=False)
    table = changed(table, params=np.empty((len(table.view), 0), "<f4"), features={})
    with CacheReader(make.write(tmp_path / "t.h5", table, make.manifest(view_columns=[]))) as reader:
        make.assert_equal(reader.table(), table)
        assert reader.params([0, 1]).shape == (2, 0)
        assert not [name for name in make.objects(reader.path) if "params" in name or "name" in name or "feat" in name]


def test_a_cache_of_format_1_stays_readable():
    """The file was written once by format 1 and is never regenerated: a new format needs a new file beside it."""
    with CacheReader(Path(__file__).with_name("golden_format_1.cache")) as reader:
        reader.verify()
        assert reader.recipe_id == "1b1bbb1eff0bec0e7c5e3bf124104929dd55c3b96d24ed05ab13a89336a6c7c5"
        assert reader.cache_id == "b60e76d6803afb83c4d218543387e0b8331fbe46b9da563a329999a4118947d5"
        assert reader.content_id == "dbb6f200b957519e1fef02a39f4a4305dbbe0d39ca032504aa7acf3b4b3f25f9"
        assert reader.first_row.tolist() == [0, 3, 6, 8]
        assert reader.view.tolist() == [3, 5, 6, 1, 5, 6, 4, 6]
        assert reader.logits(0).tolist() == [0.3573804199695587, -1.2083185911178589, -0.004454133100807667]
        assert reader.names == ["mel/ä 0.jpg", "mel/ä 1.jpg", "mel/ä 2.jpg"]


@pytest.mark.skipif(h5py.version.hdf5_version_tuple < (2, 0, 0), reason="earlier libhdf5 stamps the time of day")
def test_the_same_table_gives_the_same_bytes(make, sealed, tmp_path):
    assert make.write(tmp_path / "t.h5", make.table()).read_bytes() == sealed.read_bytes()
