"""What is damaged or gone in a store is put right by whoever has the rows, and by nothing but the promised bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import CacheReader
from cache.store import Entry, Stood, Store, StoreError

Patient = Callable[..., Store]


def data_of(store: Store, entry: Entry) -> bytes:
    """The bytes that stand under the name of an object's data."""
    return store.files.read(entry.data_name, 0, entry.n_bytes)


def overwrite(store: Store, name: str, content: bytes) -> None:
    """As somebody with the right to write would."""
    store.files.fs.pipe_file(store.files.path(name), content)


def damage(store: Store, entry: Entry) -> bytes:
    """Flip one bit in the data of an object, as a disk may; what stood there before."""
    content = data_of(store, entry)
    overwrite(store, entry.data_name, content[: entry.n_bytes // 2] + flipped(content[entry.n_bytes // 2 :]))
    return content


def flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def test_a_damaged_object_is_put_right_by_the_same_file_with_check(
    url: str, large: Path, tmp_path: Path, patient: Patient
) -> None:
    store = patient(url)
    entry = store.push(large).entry
    before = damage(store, entry)
    assert store.push(large).stood is Stood.WHOLE  # nobody looked
    with pytest.raises(StoreError, match=r"ask who has it to run `softlabel cache push FILE .* --check`"):
        Store(url).pull(entry, tmp_path / "refused.h5")
    mended = store.push(large, check=True)
    assert (mended.is_new, mended.stood) == (True, Stood.DAMAGED)
    assert data_of(store, entry) == before
    with CacheReader(Store(url).pull(mended.entry, tmp_path / "out.h5")) as reader:
        assert reader.content_id == entry.content_id
    again = store.push(large, check=True)
    assert (again.is_new, again.stood) == (False, Stood.WHOLE)
    assert not list(large.parent.glob("*.parts"))


def test_a_damaged_object_is_put_right_by_another_file_with_the_same_rows(
    folder: str, large: Path, twin: Path, tmp_path: Path, patient: Patient
) -> None:
    store = patient(folder)
    entry = store.push(large).entry
    damage(store, entry)
    damaged = data_of(store, entry)
    mended = store.push(twin, check=True)
    assert (mended.is_new, mended.stood) == (True, Stood.DAMAGED)
    assert mended.entry.sha256 != entry.sha256
    assert data_of(store, entry) == damaged  # nothing but its own bytes may take its place
    (listed,) = Store(folder).entries()
    assert listed == mended.entry
    Store(folder).pull(listed, tmp_path / "out.h5")


def test_who_was_refused_an_object_puts_it_right_without_check(
    folder: str, large: Path, tmp_path: Path, patient: Patient
) -> None:
    store = patient(folder)
    entry = store.push(large).entry
    before = damage(store, entry)
    with pytest.raises(StoreError, match="is refused"):
        store.pull(entry, tmp_path / "out.h5")
    assert store.push(large).stood is Stood.DAMAGED
    assert data_of(store, entry) == before
    assert store.push(large).stood is Stood.WHOLE


def test_a_manifest_whose_tables_are_not_the_datas_is_written_anew(folder: str, large: Path, patient: Patient) -> None:
    store = patient(folder)
    entry = store.push(large).entry
    said = entry.to_dict()
    said["tables"]["rows/view"]["sha256"] = "0" * 64
    overwrite(store, entry.name, json.dumps(said).encode())
    assert store.push(large, check=True).stood is Stood.DAMAGED
    store.row_tables(store.find(entry.content_id))


def test_data_that_are_gone_are_put_back(url: str, large: Path, tmp_path: Path, patient: Patient) -> None:
    store = patient(url)
    entry = store.push(large).entry
    store.files.fs.rm_file(store.files.path(entry.data_name))
    put_back = store.push(large)
    assert (put_back.is_new, put_back.stood, put_back.entry) == (True, Stood.MISSING, entry)
    store.pull(entry, tmp_path / "out.h5")
