"""What a store promises, in a folder and behind a real S3 API."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cache import CacheReader, quarantine
from cache.errors import CacheBusy, CacheDamaged, CacheDiskFull, CacheError, CacheMismatch
from cache.store import Entry, Stood, Store, StoreError, files
from cache.workspace import Workspace

PRIVATE = "Doe_John"
Patient = Callable[..., Store]


def contents(store: Store) -> dict[str, bytes]:
    """Name -> bytes of everything that the store shows."""
    return {name: store.files.read(name, 0, n) for name, n in store.files.sizes().items()}


def overwrite(store: Store, name: str, content: bytes) -> None:
    """As somebody with the right to write would."""
    path = store.files.path(name)
    store.files.fs.pipe_file(path, content)


@pytest.mark.usefixtures("child_process")
def test_what_is_pushed_comes_back_with_the_same_rows_and_without_names(
    url: str, small: Path, make: ModuleType, tmp_path: Path, patient: Patient
) -> None:
    told: list[str] = []
    pushed = patient(url).push(small, confirm=told.extend)
    assert pushed.is_new
    store = patient(url)
    (entry,) = store.entries()
    assert entry == pushed.entry
    out = store.pull(store.find(entry.content_id[:8]), tmp_path / "out.h5")
    with CacheReader(small) as before, CacheReader(out) as after:
        assert after.names is None
        before_ids = (before.recipe_id, before.cache_id, before.content_id)
        assert (after.recipe_id, after.cache_id, after.content_id) == before_ids
        assert (entry.recipe_id, entry.cache_id, entry.content_id) == before_ids
        assert (entry.n_samples, entry.n_rows, entry.tasks) == (before.n_samples, before.n_rows, before.tasks)
        make.assert_equal(after.table(), before.table() if before.names is None else unnamed(before))
    assert entry.teacher == "medsiglip"
    assert entry.created == "2026-01-02T03:04:05+00:00"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "store") == ["out.h5"]
    assert told[0].startswith("goes out: keys of 5 images, ")
    assert "teacher name (medsiglip)" in told[0]
    assert told[1].startswith("stays here: names of files, ")
    assert "of its making: compute (in part), created, skipped (in part)" in told[0]
    assert "command, compute.host, host, skipped (in part), user" in told[1]


def unnamed(reader: CacheReader) -> Any:
    """The table of a cache without names."""
    table = reader.table()
    object.__setattr__(table, "names", None)
    return table


def test_no_byte_of_the_store_has_a_name_a_command_a_user_or_a_host(url: str, small: Path, patient: Patient) -> None:
    store = patient(url)
    store.push(small)
    found = contents(store)
    assert len(found) == 2
    for name, content in found.items():
        assert PRIVATE not in name
        for word in (PRIVATE, "jpg", "softlabel cache build", os.uname().nodename):
            assert word.encode() not in content, (name, word)
    assert PRIVATE.encode() in small.read_bytes()


def test_names_go_out_only_when_asked_for(folder: str, small: Path, tmp_path: Path, patient: Patient) -> None:
    store = patient(folder)
    told: list[str] = []
    entry = store.push(small, with_names=True, confirm=told.extend).entry
    assert entry.has_names
    assert "names of files" in told[0]
    with CacheReader(store.pull(entry, tmp_path / "out.h5")) as after, CacheReader(small) as before:
        assert after.names == before.names
        assert set(after.manifest.provenance) == {"teacher", "created", "compute", "skipped"}


def test_repeating_a_push_uploads_nothing_and_a_teammates_same_rows_are_found(
    url: str, large: Path, twin: Path, patient: Patient
) -> None:
    store = patient(url)
    first = store.push(large)
    before = contents(store)
    assert not store.push(large).is_new
    found = patient(url).push(twin)
    assert (found.is_new, found.entry) == (False, first.entry)
    assert contents(store) == before


def test_a_pulled_file_is_pushed_on_byte_by_byte(folder: str, small: Path, tmp_path: Path, patient: Patient) -> None:
    store = patient(folder)
    entry = store.push(small).entry
    out = store.pull(entry, tmp_path / "out.h5")
    on = Store(str(tmp_path / "on")).push(out).entry
    assert on.sha256 == entry.sha256


def test_a_data_object_with_one_changed_byte_is_refused_before_anything_opens_it(
    url: str, large: Path, tmp_path: Path, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = patient(url)
    entry = store.push(large).entry
    content = bytearray(contents(store)[entry.data_name])
    content[len(content) // 2] ^= 1
    overwrite(store, entry.data_name, bytes(content))

    def never(path: Path) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(quarantine, "examine", never)
    with pytest.raises(StoreError, match=r"is refused, unopened.*twice the same ones, so it was changed") as caught:
        patient(url).pull(entry, tmp_path / "out.h5")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out.h5*"))


def test_half_an_object_is_refused_by_its_size(folder: str, large: Path, tmp_path: Path, patient: Patient) -> None:
    n_bytes = 100_000
    store = patient(folder)
    entry = store.push(large).entry
    overwrite(store, entry.data_name, contents(store)[entry.data_name][:n_bytes])
    with pytest.raises(StoreError, match=rf"{n_bytes:,} bytes stands there, its manifest promises {entry.n_bytes:,}"):
        patient(folder).pull(entry, tmp_path / "out.h5")
    mended = patient(folder).push(large)
    assert (mended.is_new, mended.stood) == (True, Stood.DAMAGED)
    patient(folder).pull(mended.entry, tmp_path / "out.h5")


def test_an_object_whose_ids_are_not_those_of_its_manifest_is_refused(
    folder: str, large: Path, other: Path, tmp_path: Path, patient: Patient
) -> None:
    store = patient(folder)
    entry, wrong = store.push(large).entry, Store(str(tmp_path / "elsewhere")).push(other).entry
    said = {**wrong.to_dict(), "content_id": entry.content_id}
    overwrite(store, entry.name, json.dumps(said).encode())
    lying = Entry.from_bytes(json.dumps(said).encode(), entry.recipe_id, entry.content_id)
    overwrite(store, lying.data_name, (tmp_path / "elsewhere" / wrong.data_name).read_bytes())
    with pytest.raises(CacheMismatch, match="is refused: its content_id is"):
        patient(folder).pull(store.find(entry.content_id), tmp_path / "out.h5")
    assert not list(tmp_path.glob("out.h5*"))


@pytest.mark.usefixtures("child_process")
def test_what_is_no_cache_is_refused_by_the_child_process(
    folder: str, small: Path, tmp_path: Path, patient: Patient
) -> None:
    import hashlib

    store = patient(folder)
    entry = store.push(small).entry
    content = os.urandom(entry.n_bytes)
    said = {**entry.to_dict(), "sha256": hashlib.sha256(content).hexdigest()}
    lying = Entry.from_bytes(json.dumps(said).encode(), entry.recipe_id, entry.content_id)
    overwrite(store, lying.data_name, content)
    with pytest.raises(CacheDamaged, match=rf"{lying.sha256}.h5 is refused"):
        patient(folder).pull(lying, tmp_path / "out.h5")
    assert not list(tmp_path.glob("out.h5*"))


def test_a_broken_manifest_is_told_in_one_line_and_the_others_are_listed(
    url: str, small: Path, large: Path, patient: Patient, caplog: pytest.LogCaptureFixture
) -> None:
    store = patient(url)
    entry = store.push(small).entry
    bad = {
        f"{'1' * 64}/{'2' * 64}.json": b'{"format": 1',
        f"{'1' * 64}/{'3' * 64}.json": b"[" * 5000,
        f"{'1' * 64}/{'4' * 64}.json": b"",
        f"{'1' * 64}/{'5' * 64}.json": entry.to_bytes(),
        f"{'1' * 64}/{'6' * 64}.json": b'{"\\u001b[31mred": 1}',
    }
    for name, content in {**bad, "notes.txt": b"hello", "x/y.json": b"{}"}.items():
        store.files.fs.makedirs(store.files.path(name.rpartition("/")[0]), exist_ok=True)
        overwrite(store, name, content)
    with caplog.at_level("WARNING", "cache"):
        assert patient(url).entries() == [entry]
    assert len(caplog.records) == len(bad)
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert "is left out" in record.getMessage()
    assert patient(url).entries("1" * 64) == []
    assert patient(url).entries(entry.recipe_id) == [entry]


def test_the_row_tables_of_an_object_are_read_without_its_rows(
    url: str, large: Path, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = patient(url)
    entry = store.push(large).entry
    read: list[int] = []
    once = files.Files.read_once
    monkeypatch.setattr(files.Files, "read_once", lambda *words: (read.append(words[3] - words[2]), once(*words))[1])
    tables = patient(url).row_tables(entry)
    with CacheReader(large) as reader:
        assert tables.pairs() == reader.pairs()
        assert np.array_equal(tables.key, reader.keys)
    assert sum(read) == sum(place.n_bytes for place in entry.tables.values()) < entry.n_bytes / 100


def test_row_tables_that_are_not_those_of_the_manifest_are_refused(folder: str, large: Path, patient: Patient) -> None:
    store = patient(folder)
    entry = store.push(large).entry
    content = bytearray(contents(store)[entry.data_name])
    content[entry.tables["rows/view"].offset] ^= 1
    overwrite(store, entry.data_name, bytes(content))
    with pytest.raises(StoreError, match="its rows/view is not what its manifest says"):
        patient(folder).row_tables(entry)


def test_an_id_that_means_several_lists_them_and_one_that_means_none_says_so(
    folder: str, large: Path, other: Path, patient: Patient
) -> None:
    store = patient(folder)
    one, two = store.push(large).entry, store.push(other).entry
    assert one.recipe_id == two.recipe_id
    for found in (one, two):
        for wanted in (found.content_id[:8], found.cache_id, f"{found.recipe_id}/{found.content_id[:10]}"):
            assert store.find(wanted) == found
    with pytest.raises(StoreError, match="2 caches have the ID") as caught:
        store.find(one.recipe_id[:12])
    for found in (one, two):
        assert found.content_id[:16] in str(caught.value)
    with pytest.raises(StoreError, match=r"has nothing with the ID 0{8}: softlabel cache list"):
        store.find("0" * 8)


def test_an_existing_file_is_never_replaced(
    folder: str, small: Path, other: Path, tmp_path: Path, patient: Patient
) -> None:
    store = patient(folder)
    entry, wrong = store.push(small).entry, store.push(other).entry
    out = store.pull(entry, tmp_path / "out.h5")
    before = out.read_bytes()
    assert store.pull(entry, out) == out
    with pytest.raises(CacheMismatch, match="exists and is another file: choose another -o"):
        store.pull(wrong, out)
    assert out.read_bytes() == before


def test_a_second_pull_of_the_same_output_is_told(folder: str, small: Path, tmp_path: Path, patient: Patient) -> None:
    store = patient(folder)
    entry = store.push(small).entry
    with Workspace(tmp_path / "out.h5"), pytest.raises(CacheBusy, match="another process is writing this output"):
        store.pull(entry, tmp_path / "out.h5")


def test_a_full_disk_is_told_before_the_first_byte(
    folder: str, large: Path, tmp_path: Path, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    store = patient(folder)
    entry = store.push(large).entry
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(CacheDiskFull, match=r"no room for [\d,]+ bytes in .*1,000 are free"):
        store.pull(entry, tmp_path / "out.h5")


def test_a_disk_that_fills_up_leaves_what_arrived_for_the_next_pull(
    large: Path, tmp_path: Path, patient: Patient, file_limit: Callable[[int], Any], bucket: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "cache")
    store = patient(bucket)
    entry = store.push(large).entry
    with file_limit(300_000), pytest.raises(CacheDiskFull, match="no room for"):
        store.pull(entry, tmp_path / "out.h5")
    (partial,) = (tmp_path / "out.h5.parts").glob("*.pull")
    assert partial.stat().st_size == 300_000
    arrived: list[int] = []
    store.pull(entry, tmp_path / "out.h5", progress=arrived.append)
    assert arrived[0] == 300_000
    assert "stays" not in caplog.text
    assert sum(arrived) == entry.n_bytes
    assert not (tmp_path / "out.h5.parts").exists()


def test_a_partial_file_of_wrong_bytes_is_replaced_once(
    folder: str, large: Path, tmp_path: Path, patient: Patient, caplog: pytest.LogCaptureFixture
) -> None:
    store = patient(folder)
    entry = store.push(large).entry
    parts = tmp_path / "out.h5.parts"
    parts.mkdir()
    (parts / f"{entry.sha256}.pull").write_bytes(os.urandom(200_000))
    with caplog.at_level("WARNING", "cache"):
        out = store.pull(entry, tmp_path / "out.h5")
    assert "has another sha256 than its manifest says: once more" in caplog.text
    with CacheReader(out) as reader:
        assert reader.content_id == entry.content_id


def test_a_damaged_cache_is_not_pushed(
    folder: str, large: Path, make: ModuleType, tmp_path: Path, patient: Patient
) -> None:
    offset, _ = make.offsets(large)["logits/0"]
    damaged = make.flip(large, tmp_path / "damaged.h5", offset + 5, 3)
    with pytest.raises(CacheDamaged, match="is damaged in 1 block: logits/0"):
        patient(folder).push(damaged)


def test_a_push_that_is_not_confirmed_sends_nothing(folder: str, small: Path, tmp_path: Path, patient: Patient) -> None:
    def no(lines: list[str]) -> None:
        raise CacheError("no")

    with pytest.raises(CacheError, match=r"^no$"):
        patient(folder).push(small, confirm=no)
    assert not (tmp_path / "store").exists()


def test_a_store_goes_on_in_a_forked_child(bucket: str, small: Path, patient: Patient) -> None:
    store = patient(bucket)
    entry = store.push(small).entry
    child = os.fork()
    if not child:
        code = 1
        try:
            code = int(store.entries() != [entry])
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert store.entries() == [entry]
