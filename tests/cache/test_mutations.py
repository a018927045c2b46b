"""A valid cache changed by an outsider through plain h5py: every change is refused, in one line.

Each change is made in the file itself and in a fresh copy of it, with the old CRC tables and with CRC tables that fit;
the seal stays. Changes that the seal covers have to be refused already at opening.
Run: pytest tests/cache/test_mutations.py
"""

import hashlib
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cache import CacheReader

Arrays = dict[str, Any]
Change = Callable[[Arrays], object]

BIG = ("rows/params", "rows/witness", "logits/0", "logits/1", "features/embedding")
OBJECTS = (
    "manifest", "samples/key", "samples/first_row", "samples/name", "rows/view", *BIG,
    *(f"crc32/{name}" for name in BIG), "seal",
)  # fmt: skip
AT_OPENING, BY_CRC = True, False


def edit_in_place(source: Path, target: Path, arrays: Arrays) -> None:
    """Write the changed objects into a copy of the file, where they fit; else remove them and make them anew."""
    shutil.copy(source, target)
    with h5py.File(target, "r+") as h5:
        there = [name for name in OBJECTS if name not in arrays]
        for name, array in arrays.items():
            old = h5.get(name)
            if old is not None and (old.dtype.str, old.shape) == (array.dtype.str, array.shape):
                old[...] = array
            else:
                there += [name] if old is not None else []
        for name in there:
            del h5[name]
        for name in arrays.keys() - set(visited(h5)):
            h5.create_dataset(name, data=arrays[name])


def write_anew(source: Path, target: Path, arrays: Arrays) -> None:
    """All objects in a new file."""
    with h5py.File(target, "x") as h5:
        for name, array in arrays.items():
            h5.create_dataset(name, data=array)


def visited(h5: h5py.File) -> list[str]:
    """The names of all datasets."""
    names: list[str] = []
    h5.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def with_fitting_crcs(arrays: Arrays) -> None:
    """New CRC tables for what the objects hold now, as docs and code say them."""
    for name in [name for name in arrays if f"crc32/{name}" in arrays]:
        blocks = [arrays[name][start : start + 512] for start in range(0, len(arrays[name]), 512)]
        arrays[f"crc32/{name}"] = np.array([zlib.crc32(block.tobytes()) for block in blocks], "<u4")


def with_fitting_seal(arrays: Arrays) -> None:
    """A new seal as well: whoever can do that is no accident any more."""
    with_fitting_crcs(arrays)
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        if name != "seal":
            digest.update(f"{name}\0{array.dtype.str}\0{','.join(map(str, array.shape))}\0".encode())
            digest.update(b"" if f"crc32/{name}" in arrays else array.tobytes())
    arrays["seal"] = np.frombuffer(digest.digest(), "u1")


def swap(name: str, one: Any, other: Any) -> Change:
    """Exchange two entries of an object."""

    def change(arrays: Arrays) -> None:
        array = arrays[name]
        array[one], array[other] = array[other].copy(), array[one].copy()

    return change


def two_like_samples(arrays: Arrays) -> tuple[int, int]:
    """The first two samples with the same views, two or more."""
    views = np.split(arrays["rows/view"], arrays["samples/first_row"][1:-1].astype(int))
    seen: dict[bytes, int] = {}
    for sample, its_views in enumerate(views):
        if len(its_views) > 1 and (other := seen.setdefault(its_views.tobytes(), sample)) != sample:
            return other, sample
    raise AssertionError("no two samples with the same views")


def swap_rows_of_samples(*names: str) -> Change:
    """Exchange all rows of two samples with the same views, in some objects; their keys stay."""

    def change(arrays: Arrays) -> None:
        first = arrays["samples/first_row"].astype(int)
        one, other = (np.arange(first[at], first[at + 1]) for at in two_like_samples(arrays))
        for name in names:
            swap(name, one, other)(arrays)

    return change


def swap_samples(arrays: Arrays) -> None:
    """The same of all objects, keys and names with them: every row still stands under its own key."""
    pair = two_like_samples(arrays)
    swap_rows_of_samples(*BIG)(arrays)
    swap("samples/key", *pair)(arrays)
    swap("samples/name", *pair)(arrays)


def put(name: str, at: Any, value: Any) -> Change:
    """Another value in an object."""
    return lambda arrays: arrays[name].__setitem__(at, value)


def replace(name: str, edit: Callable[[Any], np.ndarray]) -> Change:
    """Another array in the place of an object, or where there was none."""
    return lambda arrays: arrays.update({name: edit(arrays.get(name))})


def in_manifest(old: bytes, new: bytes) -> Change:
    """Other text in the manifest."""

    def edit(manifest: np.ndarray) -> np.ndarray:
        assert manifest.tobytes().count(old) == 1
        return np.frombuffer(manifest.tobytes().replace(old, new), "u1")

    return replace("manifest", edit)


def second_view(arrays: Arrays) -> int:
    """The first row that is not its sample's first."""
    return int(np.setdiff1d(np.arange(len(arrays["rows/view"])), arrays["samples/first_row"])[0])


def drop_view(arrays: Arrays) -> None:
    """One (sample, view) less, in all tables."""
    row, first = second_view(arrays), arrays["samples/first_row"]
    for name in ("rows/view", *BIG):
        arrays[name] = np.delete(arrays[name], row, axis=0)
    first[first > row] -= np.uint64(1)


def swap_views(arrays: Arrays) -> None:
    """The view indices of a sample's first two rows."""
    row = second_view(arrays)
    swap("rows/view", row - 1, row)(arrays)


def move_row(arrays: Arrays) -> None:
    """The second sample's first row is given to the first one; each keeps a row or more."""
    first = arrays["samples/first_row"]
    at = int(np.flatnonzero(np.diff(first) > 1)[1])
    first[at] += np.uint64(1)


def drop_sample(arrays: Arrays) -> None:
    """The last sample, from all tables."""
    rows = int(arrays["samples/first_row"][-2])
    for name in ("rows/view", *BIG):
        arrays[name] = arrays[name][:rows]
    for name in ("samples/key", "samples/first_row", "samples/name"):
        arrays[name] = arrays[name][:-1]


def rename(old: str, new: str) -> Change:
    """An object and its CRC table under other names."""

    def change(arrays: Arrays) -> None:
        arrays[new] = arrays.pop(old)
        arrays[f"crc32/{new}"] = arrays.pop(f"crc32/{old}")

    return change


def add_big(name: str, like: str) -> Change:
    """One more object with a CRC table."""

    def change(arrays: Arrays) -> None:
        arrays[name], arrays[f"crc32/{name}"] = arrays[like].copy(), arrays[f"crc32/{like}"].copy()

    return change


def without(*names: str) -> Change:
    """Objects less."""
    return lambda arrays: [arrays.pop(name) for name in names]


def flip_bit(name: str) -> Change:
    """The lowest bit of an object's first byte."""

    def edit(array: np.ndarray) -> np.ndarray:
        copy = array.copy()
        copy.reshape(-1).view(np.uint8)[0] ^= 1
        return copy

    return replace(name, edit)


def exchange(one: str, other: str) -> Change:
    """Two objects under each other's names."""
    return lambda arrays: arrays.update({one: arrays[other], other: arrays[one]})


def as_dtype(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """The same bytes declared to be of another type of that size."""
    return lambda array: array.view(dtype)


OTHER_DTYPES = [
    ("manifest", "i1"), ("manifest", "S1"), ("manifest", "?"), ("samples/key", "i1"), ("samples/key", "S1"),
    ("samples/first_row", "i8"), ("samples/first_row", "f8"), ("samples/first_row", ">u8"), ("samples/name", "V14"),
    ("rows/view", "i2"), ("rows/view", "f2"), ("rows/view", ">u2"), ("rows/params", "i4"), ("rows/params", ">f4"),
    ("rows/witness", "i1"), ("rows/witness", "?"), ("logits/0", "u4"), ("logits/0", ">f4"), ("logits/0", "S4"),
    ("features/embedding", "u2"), ("features/embedding", ">f2"),
    ("seal", "i1"), ("seal", "S1"),
]  # fmt: skip
SEAL = "its seal does not match"
# What was done; who notices, if the CRC tables stay; what the message says then; the change.
CHANGES: list[tuple[str, bool, str, Change]] = [
    *[(f"two rows swapped in {n}", BY_CRC, rf"{n} rows 0-511, {n} rows 512-1023\.", swap(n, 3, 700)) for n in BIG],
    *[(f"neighbours swapped in {n}", BY_CRC, rf"1 block: {n} rows 0-511\.", swap(n, 3, 4)) for n in BIG],
    *[(f"one value in {n}", BY_CRC, rf"1 block: {n} rows 1024-\d+\.", put(n, -1, 1)) for n in BIG],
    ("a bit of a logit", BY_CRC, r"1 block: logits/0 rows 0-511\.", flip_bit("logits/0")),
    ("logits shifted by a row", BY_CRC, "logits/0 rows 0-511", replace("logits/0", lambda a: np.roll(a, 1, axis=0))),
    ("two columns swapped", BY_CRC, "logits/0 rows 0-511", replace("logits/0", lambda a: a[:, [1, 0, 2]])),
    ("the rows of two samples swapped", BY_CRC, "features/embedding rows .*rows/witness", swap_rows_of_samples(*BIG)),
    ("the logits of two samples swapped", BY_CRC, "blocks?: logits/0 rows", swap_rows_of_samples("logits/0")),
    ("two samples swapped, keys and all", AT_OPENING, SEAL, swap_samples),
    ("two keys swapped", AT_OPENING, SEAL, swap("samples/key", 0, 1)),
    ("a bit of a key", AT_OPENING, SEAL, flip_bit("samples/key")),
    ("two names swapped", AT_OPENING, SEAL, swap("samples/name", 0, 1)),
    ("a view index", AT_OPENING, SEAL, put("rows/view", -1, 999)),
    ("two view indices swapped", AT_OPENING, SEAL, swap_views),
    ("a row given to the sample before", AT_OPENING, SEAL, move_row),
    ("a view dropped", AT_OPENING, SEAL, drop_view),
    ("a sample dropped", AT_OPENING, SEAL, drop_sample),
    ("a class renamed", AT_OPENING, SEAL, in_manifest(b'"bkl"', b'"bkm"')),
    ("a class given a longer name", AT_OPENING, SEAL, in_manifest(b'"bkl"', b'"benign"')),
    ("two classes swapped", AT_OPENING, SEAL, in_manifest(b'"mel","nv"', b'"nv","mel"')),
    ("a class less", AT_OPENING, SEAL, in_manifest(b',"bkl"', b"")),
    ("two view columns swapped", AT_OPENING, SEAL, in_manifest(b'"x","y"', b'"y","x"')),
    ("the provenance", AT_OPENING, SEAL, in_manifest(b'"host":"here"', b'"host":"hers"')),
    ("logits declared (C, R)", AT_OPENING, "logits/0 is <f4", replace("logits/0", lambda a: a.reshape(a.shape[::-1]))),
    ("logits transposed", AT_OPENING, "logits/0 is <f4", replace("logits/0", lambda a: a.T.copy())),
    ("params declared (P, R)", AT_OPENING, "rows/params", replace("rows/params", lambda a: a.reshape(a.shape[::-1]))),
    ("features declared (R, 3, 2)", AT_OPENING, SEAL, replace("features/embedding", lambda a: a.reshape(-1, 3, 2))),
    ("features declared (R, 6)", AT_OPENING, SEAL, replace("features/embedding", lambda a: a.reshape(-1, 6))),
    ("features transposed", AT_OPENING, SEAL, replace("features/embedding", lambda a: a.swapaxes(1, 2).copy())),
    ("a feature renamed", AT_OPENING, SEAL, rename("features/embedding", "features/other")),
    ("logits as a feature", AT_OPENING, "features/l is <f4", rename("logits/1", "features/l")),
    ("a task renumbered", AT_OPENING, r"missing: \[.*'logits/1'\]", rename("logits/1", "logits/2")),
    ("a task more", AT_OPENING, SEAL, add_big("logits/2", "logits/1")),
    ("a feature more", AT_OPENING, SEAL, add_big("features/more", "features/embedding")),
    ("an object more", AT_OPENING, r"not expected: \['notes'\]", replace("notes", lambda a: np.zeros(3, "u1"))),
    ("an object more in a group", AT_OPENING, r"\['rows/n'\]", replace("rows/n", lambda a: np.zeros(3, "u1"))),
    *[(f"{n} removed", AT_OPENING, f"no object|missing|{SEAL}|not expected", without(n)) for n in OBJECTS],
    *[(f"{n} removed with its CRCs", AT_OPENING, f"no object|missing|{SEAL}", without(n, f"crc32/{n}")) for n in BIG],
    *[(f"{n} as {to}", AT_OPENING, f"{n} is .*expected", replace(n, as_dtype(to))) for n, to in OTHER_DTYPES],
]
CRC_CHANGES: list[tuple[str, bool, str, Change]] = [
    ("two CRC tables swapped", AT_OPENING, SEAL, exchange("crc32/logits/0", "crc32/logits/1")),
    *[(f"a bit of crc32/{n}", AT_OPENING, SEAL, flip_bit(f"crc32/{n}")) for n in BIG],
    *[(f"CRCs as {to}", AT_OPENING, "crc32/.* is .*", replace("crc32/logits/0", as_dtype(to))) for to in ("i4", ">u4")],
    ("a block less", AT_OPENING, "crc32/logits/0 is .*", replace("crc32/logits/0", lambda a: a[:-1])),
    ("the seal", AT_OPENING, SEAL, flip_bit("seal")),
]
# What was done; what the message says although CRC tables and seal fit; the change.
SENSELESS: list[tuple[str, str, Change]] = [
    ("two keys swapped", "samples/key is not sorted", swap("samples/key", 0, 1)),
    ("a key twice", "samples/key is not sorted and unique", put("samples/key", 1, 0)),
    ("two view indices swapped", "rows/view does not ascend", swap_views),
    ("a view twice", "rows/view does not ascend", lambda arrays: put("rows/view", second_view(arrays), 0)(arrays)),
    ("a sample without rows", "samples/first_row does not run", put("samples/first_row", 1, 0)),
    ("rows beyond the end", "samples/first_row does not run", put("samples/first_row", -1, 10**6)),
    ("rows before the start", "samples/first_row does not run", put("samples/first_row", 0, 2**64 - 1)),
    ("rows far beyond the end", "samples/first_row does not run", put("samples/first_row", 1, 2**63)),
    ("rows out of order", "samples/first_row does not run", swap("samples/first_row", 1, 2)),
    ("a class less", "its manifest names", in_manifest(b',"bkl"', b"")),
    ("a view column less", "its manifest names", in_manifest(b',"hflip"', b"")),
    ("a task more", "its manifest names", add_big("logits/2", "logits/1")),
    ("the same class twice", "names something twice", in_manifest(b'"bkl"', b'"mel"')),
    ("a manifest that is not canonical", "canonical", in_manifest(b'"bkl"', b' "bkl"')),
    ("a manifest that is no JSON", "JSON", in_manifest(b'"bkl"', b'"bkl')),
    (
        "the witness removed",
        r"missing: \['crc32/rows/witness', 'rows/witness'\]",
        without("rows/witness", "crc32/rows/witness"),
    ),
    ("logits declared (C, R)", "logits/0 is <", replace("logits/0", lambda a: a.reshape(a.shape[::-1]))),
    ("logits in float16", "logits/0 is <f2", replace("logits/0", lambda a: a.astype("<f2"))),
    ("an object more", "not expected", replace("notes", lambda a: np.zeros(3, "u1"))),
]


def changed(arrays: Arrays, change: Change) -> Arrays:
    """The objects after a change, which is one."""
    before = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()}
    change(arrays)
    assert {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()} != before
    return arrays


@pytest.mark.parametrize("write", [edit_in_place, write_anew])
def test_an_unchanged_cache_is_accepted_however_the_outsider_wrote_it(make, long_cache, long_table, tmp_path, write):
    arrays = make.objects(long_cache)
    assert sorted(arrays) == sorted(OBJECTS)
    seal = arrays["seal"].tobytes()
    with_fitting_seal(arrays)
    assert arrays["seal"].tobytes() == seal
    write(long_cache, tmp_path / "t.h5", arrays)
    reader = CacheReader(tmp_path / "t.h5")
    reader.verify()
    make.assert_equal(reader.table(), long_table)


@pytest.mark.parametrize("add", [{"data": 1}, {"data": [[1, 2]], "chunks": (1, 2)}])
def test_an_object_with_a_line_break_in_its_name_is_refused_in_one_line(long_cache, tmp_path, add, refusal_at_opening):
    shutil.copy(long_cache, tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r+") as h5:
        h5.create_dataset("rows/more\nError: \x1b[31mred", **add)
    refusal_at_opening(tmp_path / "t.h5")


@pytest.mark.parametrize("write", [edit_in_place, write_anew])
@pytest.mark.parametrize(
    ("notices", "reason", "change"),
    [row[1:] for row in CHANGES + CRC_CHANGES],
    ids=[row[0] for row in CHANGES + CRC_CHANGES],
)
def test_a_change_is_refused(make, long_cache, tmp_path, write, notices, reason, change, refusal, refusal_at_opening):
    arrays = changed(make.objects(long_cache), change)
    write(long_cache, tmp_path / "t.h5", arrays)
    message = (refusal_at_opening if notices is AT_OPENING else refusal)(tmp_path / "t.h5")
    assert re.search(reason, message), message


@pytest.mark.parametrize("change", [row[3] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_a_change_with_crcs_that_fit_is_refused_at_opening(make, long_cache, tmp_path, change, refusal_at_opening):
    arrays = changed(make.objects(long_cache), change)
    with_fitting_crcs(arrays)
    edit_in_place(long_cache, tmp_path / "t.h5", arrays)
    refusal_at_opening(tmp_path / "t.h5")


@pytest.mark.parametrize(("reason", "change"), [row[1:] for row in SENSELESS], ids=[row[0] for row in SENSELESS])
def test_a_senseless_cache_is_refused_at_opening_even_if_its_seal_fits(
    make, long_cache, tmp_path, reason, change, refusal_at_opening
):
    arrays = changed(make.objects(long_cache), change)
    with_fitting_seal(arrays)
    write_anew(long_cache, tmp_path / "t.h5", arrays)
    message = refusal_at_opening(tmp_path / "t.h5")
    assert re.search(reason, message), message
