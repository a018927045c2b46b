"""The walk over an HDF5 file without libhdf5: what it finds is what libhdf5 finds, and what is strange is refused."""

import io
import os
import struct

import h5py
import numpy as np
import pytest

from cache import CacheReader, Manifest, Table
from cache.container import contents
from cache.errors import CacheDamaged
from cache.fill import write_table
from cache.lookup3 import lookup3


def by_h5py(path):
    """Name -> (dtype, shape, first byte) of all datasets."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = (item.dtype.str, item.shape, item.id.get_offset())

    with h5py.File(path, "r") as h5:
        h5.visititems(visit)
    return found


def by_ours(path):
    """The same."""
    with open(path, "rb", buffering=0) as file:
        extents = contents(file, os.path.getsize(path)).extents
    return {name: (spec.dtype.str, spec.shape, offset) for name, (spec, offset) in extents.items()}


@pytest.mark.parametrize("n_objects", [1, 8, 9, 45, 46, 300, 1000])
@pytest.mark.parametrize(
    "options",
    [{"libver": "earliest"}, {"libver": "latest"}, {"libver": ("v108", "v108")}, {"userblock_size": 1024}],
    ids=str,
)
def test_all_objects_of_any_group_are_where_libhdf5_says(tmp_path, n_objects, options):
    with h5py.File(tmp_path / "t.h5", "x", **options) as h5:
        for number in range(n_objects):
            dtype = ("<f2", "<f4", "<f8", ">u2", "i1", "<u8", "S7")[number % 7]
            h5[f"group/{'x' * (number % 40)}{number}"] = np.zeros((1 + number % 3, 2), dtype)
    found = by_ours(tmp_path / "t.h5")
    assert found == by_h5py(tmp_path / "t.h5")
    assert len(found) == n_objects


def test_a_cache_with_many_tasks_is_read(make, tmp_path):
    names = [f"task {number}" for number in range(60)]
    identity = {"tasks": [{"name": name, "classes": ["a", "b"]} for name in names], "view_columns": []}
    rows = make.table()
    logits = {name: np.full((len(rows.view), 2), number, "<f4") for number, name in enumerate(names)}
    table = Table(
        key=rows.key, first_row=rows.first_row, view=rows.view, params=rows.params[:, :0], witness=rows.witness,
        logits=logits,
    )  # fmt: skip
    write_table(tmp_path / "t.h5", Manifest(identity, {}), table)
    reader = CacheReader(tmp_path / "t.h5")
    reader.verify()
    assert all((reader.logits([0], name) == number).all() for number, name in enumerate(names))


def test_attributes_of_any_size_and_number_are_neither_read_nor_minded(make, sealed, tmp_path):
    path = make.rewrite(sealed, tmp_path / "t.h5", lambda arrays: None)
    with h5py.File(path, "r+") as h5:
        h5["logits/0"].attrs["long"] = "x" * 30_000
        h5.attrs["note"] = h5.ref
        for number in range(200):
            h5["rows"].attrs[f"note {number}"] = [1.5, 2.5]
    CacheReader(path).verify()


def refused(path, reason):
    with pytest.raises(CacheDamaged, match=reason) as caught:
        CacheReader(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1200


TYPES = {
    "text of any length": h5py.string_dtype(),
    "a reference": h5py.ref_dtype,
    "a region": h5py.regionref_dtype,
    "opaque": np.dtype("V4"),
    "a boolean": np.dtype("?"),
    "an enum": h5py.enum_dtype({"a": 1}),
    "compound": np.dtype([("a", "u1"), ("b", "f4", (2,))]),
    "complex": np.dtype("c8"),
    "a list of any length": h5py.vlen_dtype("u1"),
}


@pytest.mark.parametrize("dtype", list(TYPES.values()), ids=list(TYPES))
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_a_type_that_caches_lack_is_refused(make, sealed, tmp_path, dtype, libver):
    arrays = make.objects(sealed)
    with h5py.File(tmp_path / "t.h5", "x", libver=libver) as h5:
        for name in arrays.keys() - {"logits/0"}:
            h5[name] = arrays[name]
        h5.create_dataset("logits/0", arrays["logits/0"].shape, dtype)
    refused(tmp_path / "t.h5", "logits/0 is stored as another type than caches have")


def test_a_type_nested_thousandfold_is_refused(make, sealed, tmp_path):
    kind = h5py.h5t.STD_U8LE.copy()
    for _ in range(1000):
        kind = h5py.h5t.array_create(kind, (1,))
    path = make.rewrite(sealed, tmp_path / "t.h5", lambda arrays: arrays.pop("seal"))
    with h5py.File(path, "r+") as h5:
        h5py.h5d.create(h5.id, b"seal", kind, h5py.h5s.create_simple((2,)))
    refused(path, "seal is stored as another type")


def test_a_named_type_is_refused(make, sealed, tmp_path):
    path = make.rewrite(sealed, tmp_path / "t.h5", lambda arrays: arrays.pop("seal"))
    with h5py.File(path, "r+") as h5:
        h5["type"] = np.dtype("u1")
        h5.create_dataset("seal", (32,), dtype=h5["type"])
    refused(path, "stored as another type")


def test_a_link_that_leads_back_is_refused_at_once(make, sealed, tmp_path):
    path = make.rewrite(sealed, tmp_path / "t.h5", lambda arrays: None)
    with h5py.File(path, "r+") as h5:
        h5["rows/again"] = h5["/"]
    refused(path, "groups nested deeper than 3")


def test_two_names_for_the_same_bytes_are_refused(make, sealed, tmp_path):
    path = make.rewrite(sealed, tmp_path / "t.h5", lambda arrays: arrays.pop("logits/1"))
    with h5py.File(path, "r+") as h5:
        h5["logits/1"] = h5["logits/0"]
    refused(path, r"logits/\d and logits/\d lie on the same bytes")


def test_data_on_a_header_is_refused(make, sealed, tmp_path):
    """The seal would hash the header; whoever changed one would change the other."""
    path = make.rewrite(sealed, tmp_path / "t.h5", lambda arrays: None)
    at = make.offsets(path)["seal"][0]
    content = bytearray(path.read_bytes())
    patched = content.replace(struct.pack("<QQ", at, 32), struct.pack("<QQ", 0, 32))
    assert patched != content
    for match in [start for start in range(len(patched)) if patched.startswith(b"OHDR", start)]:
        end = next(
            (end for end in range(match + 20, match + 600)
             if content[end : end + 4] == lookup3(bytes(content[match:end])).to_bytes(4, "little")), None,
        )  # fmt: skip
        if end is not None:
            patched[end : end + 4] = lookup3(bytes(patched[match:end])).to_bytes(4, "little")
    path.write_bytes(patched)
    refused(path, "lie on the same bytes")


@pytest.mark.parametrize("shape", [(2**60,), (2**62, 4), (2**40, 2**40)])
def test_a_shape_that_no_file_has_room_for_is_refused(make, sealed, tmp_path, shape):
    """Written by hand into a header with a checksum that fits: libhdf5 writes no such file."""
    path = make.rewrite(sealed, tmp_path / "t.h5", lambda arrays: None)
    old = struct.pack(f"<{len(shape)}Q", *make.objects(path)["logits/0"].shape[: len(shape)])
    content = bytearray(path.read_bytes())
    changed = content.replace(old, struct.pack(f"<{len(shape)}Q", *shape))
    assert changed != content
    for start in [start for start in range(len(content)) if content.startswith(b"OHDR", start)]:
        for end in range(start + 20, start + 600):
            if content[end : end + 4] == lookup3(bytes(content[start:end])).to_bytes(4, "little"):
                changed[end : end + 4] = lookup3(bytes(changed[start:end])).to_bytes(4, "little")
                break
    path.write_bytes(changed)
    refused(path, r"in [\d,]+ bytes, expected [\d,]{20,}")


def test_the_name_of_an_object_is_shown_cut(make, sealed, tmp_path):
    path = make.rewrite(
        sealed, tmp_path / "t.h5", lambda arrays: arrays.update({"\x1b[31m" + "n" * 60_000: arrays["seal"]})
    )
    refused(path, r"not expected: \['\\+x1b\[31mn+\.\.\.")


def test_a_file_that_is_cut_off_while_it_is_read_is_refused():
    class Shrinking(io.BytesIO):
        def readinto(self, buffer):
            return 0

    with pytest.raises(CacheDamaged, match="cut off while it was read"):
        contents(Shrinking(b"x" * 1000), 1000)


def test_endless_signatures_and_metadata_have_an_end():
    with pytest.raises(CacheDamaged, match="no signature of HDF5"):
        contents(io.BytesIO(bytes(5000)), 5000)


def test_lookup3_is_the_checksum_of_bob_jenkins():
    """His own test vector, and HDF5's of its superblock, which every open compares."""
    assert lookup3(b"Four score and seven years ago") == 0x17770551
    assert lookup3(b"") == 0xDEADBEEF


@pytest.mark.parametrize("at", [26, 27])
@pytest.mark.parametrize("count", [0x41E2, 0x9800, 0xFFFF])
def test_more_records_in_a_tree_than_its_node_has_room_for_are_refused_or_not_looked_at(
    make, sealed, tmp_path, at, count
):
    """libhdf5 2.0 writes beyond the node and crashes, once somebody mends the checksum: a find of the campaign."""
    path = make.rewrite(sealed, tmp_path / "t.h5", lambda arrays: None)
    with h5py.File(path, "r+", libver="latest") as h5:
        for number in range(12):
            h5["seal"].attrs[f"note {number}"] = number
            h5.create_group(f"empty/{number}")
    content = bytearray(path.read_bytes())
    trees = [start for start in range(len(content)) if content.startswith(b"BTHD", start)]
    assert len(trees) == 2
    said = []
    for start in trees:
        changed = bytearray(content)
        changed[start + at : start + at + 2] = struct.pack("<H", count)
        changed[start + 34 : start + 38] = struct.pack("<I", lookup3(bytes(changed[start : start + 34])))
        path.write_bytes(changed)
        try:
            make.assert_equal(CacheReader(path).table(), CacheReader(sealed).table())
            said.append("same")
        except CacheDamaged as error:
            said.append(str(error))
    assert all(map(str.isprintable, said))
    assert "same" in said  # the tree of the attributes, which nobody reads
