"""Connections that break, processes that are killed, several at once: what stands is whole, what arrived is kept."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import CacheReader
from cache.errors import CacheError
from cache.store import Store, StoreError
from reliability.bad_line import BadLine, Fault

HERE = Path(__file__).parent
PIECE_BYTES = 1 << 16
Patient = Callable[..., Store]


def start(*words: object) -> subprocess.Popen[str]:
    """`killed_store.py` with these words."""
    command = [sys.executable, str(HERE / "killed_store.py"), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, what it said)."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


def assert_whole(store: Store) -> None:
    """Every manifest points to an object of its size; whatever else is shown is a data object."""
    sizes = store.files.sizes()
    entries = store.listing()
    assert not entries.broken
    for entry in entries.entries:
        assert sizes[entry.data_name] == entry.n_bytes
    shown = [name for name in sizes if not name.rpartition("/")[2].startswith(".")]
    assert all(name.endswith((".json", ".h5")) for name in shown)


def test_a_pull_over_a_line_that_breaks_at_random_arrives_whole(
    line: BadLine, bucket: str, large: Path, tmp_path: Path, patient: Patient
) -> None:
    entry = patient(bucket).push(large).entry
    rng = random.Random(0)
    line.plan = lambda number: Fault(rng.choice(["cut", "reset"]), rng.randrange(200, 130_000))
    line.start_counting()
    out = Store(bucket, patience=patient(bucket)._patience).pull(entry, tmp_path / "out.h5")
    assert line.broken > 3
    assert line.carried_bytes["down"] < 2 * entry.n_bytes
    with CacheReader(out) as reader:
        assert reader.content_id == entry.content_id


def test_a_push_over_a_line_that_breaks_at_random_arrives_whole(
    line: BadLine, bucket: str, large: Path, patient: Patient
) -> None:
    rng = random.Random(1)
    line.plan = lambda number: Fault(rng.choice(["cut", "reset"]), rng.randrange(300, 130_000))
    store = patient(bucket, first_tries=9, tries=9)
    entry = store.push(large).entry
    assert line.broken > 3
    line.plan = lambda number: None
    assert store.entries() == [entry]
    assert_whole(store)


def test_a_server_that_falls_silent_is_asked_again(
    line: BadLine, bucket: str, large: Path, tmp_path: Path, patient: Patient
) -> None:
    entry = patient(bucket).push(large).entry
    line.plan = lambda number: Fault("stall", 30_000) if number == 3 else None
    line.start_counting()
    Store(bucket, patience=patient(bucket, read_s=0.4)._patience).pull(entry, tmp_path / "out.h5")
    assert line.broken == 1
    assert line.carried_bytes["down"] < 1.5 * entry.n_bytes


def test_a_line_that_breaks_for_good_ends_in_one_sentence_and_the_next_pull_goes_on(
    line: BadLine, bucket: str, large: Path, tmp_path: Path, patient: Patient
) -> None:
    entry = patient(bucket).push(large).entry
    line.plan = lambda number: Fault("reset", 100) if line.carried_bytes["down"] > 400_000 else None
    line.start_counting()
    with pytest.raises(StoreError) as caught:
        Store(bucket, patience=patient(bucket, tries=3)._patience).pull(entry, tmp_path / "out.h5")
    assert str(caught.value).startswith(f"no connection to {bucket}, or it broke again and again")
    assert "\n" not in str(caught.value)
    (partial,) = (tmp_path / "out.h5.parts").glob("*.pull")
    there = partial.stat().st_size
    assert there > 300_000
    line.plan = lambda number: None
    line.start_counting()
    patient(bucket).pull(entry, tmp_path / "out.h5")
    assert line.carried_bytes["down"] < entry.n_bytes - there + PIECE_BYTES
    assert not (tmp_path / "out.h5.parts").exists()


def test_a_push_that_broke_goes_on_with_the_parts_that_stand(
    line: BadLine, bucket: str, large: Path, patient: Patient
) -> None:
    line.plan = lambda number: Fault("cut", 100) if line.carried_bytes["up"] > 500_000 else None
    with pytest.raises(StoreError, match="no connection"):
        patient(bucket, tries=3).push(large)
    line.plan = lambda number: None
    store = patient(bucket)
    assert store.files.sizes() == {}
    line.start_counting()
    entry = store.push(large).entry
    assert line.carried_bytes["up"] < entry.n_bytes - 300_000
    assert store.entries() == [entry]
    assert not store.files._unfinished(entry.data_name)


def test_parts_of_other_bytes_are_sent_again(bucket: str, large: Path, tmp_path: Path, patient: Patient) -> None:
    store, elsewhere = patient(bucket), Store(str(tmp_path / "elsewhere"))
    entry = elsewhere.push(large).entry
    upload_id, _ = store.files._resumed(entry.data_name)
    store.files._upload_part(entry.data_name, upload_id, 1, os.urandom(PIECE_BYTES))
    store.files._upload_part(entry.data_name, upload_id, 2, os.urandom(100))
    assert store.push(large).entry.sha256 == entry.sha256
    store.pull(entry, tmp_path / "out.h5")


def test_a_killed_push_shows_nothing_and_the_next_one_goes_on(
    url: str, large: Path, tmp_path: Path, patient: Patient
) -> None:
    mine = tmp_path / "t.h5"
    mine.write_bytes(large.read_bytes())
    code, said = end(start("push", mine, url, PIECE_BYTES, 300_000))
    assert code == -signal.SIGKILL, said
    store = patient(url)
    assert not [name for name in store.files.sizes() if not name.rpartition("/")[2].startswith(".")]
    arrived: list[int] = []
    entry = store.push(mine, progress=arrived.append).entry
    assert sum(arrived) == entry.n_bytes
    if not url.startswith("s3"):
        assert arrived[0] >= 300_000
    assert_whole(store)
    store.pull(entry, tmp_path / "out.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["out.h5", "t.h5", *([] if url.startswith("s3") else ["store"])]
    )


def test_a_killed_pull_leaves_no_cache_and_the_next_one_goes_on(
    bucket: str, large: Path, tmp_path: Path, patient: Patient
) -> None:
    store = patient(bucket)
    entry = store.push(large).entry
    out = tmp_path / "out.h5"
    code, said = end(start("pull", bucket, entry.content_id, out, PIECE_BYTES, 300_000))
    assert code == -signal.SIGKILL, said
    assert not out.exists()
    arrived: list[int] = []
    store.pull(entry, out, progress=arrived.append)
    assert arrived[0] >= 300_000
    assert sum(arrived) == entry.n_bytes
    assert not (tmp_path / "out.h5.parts").exists()


def test_those_who_push_at_once_all_succeed_or_find_the_others(
    url: str, large: Path, twin: Path, tmp_path: Path, patient: Patient
) -> None:
    sources = [large, twin]
    ended = [end(process) for process in [start("push", source, url, PIECE_BYTES, 0) for source in sources]]
    assert [code for code, _ in ended] == [0] * len(sources), ended
    store = patient(url)
    assert_whole(store)
    wanted = {CacheReader(source).content_id for source in sources}
    assert {entry.content_id for entry in store.entries()} == wanted
    store.pull(store.entries()[0], tmp_path / "out.h5")


def test_an_unfinished_file_with_holes_is_not_gone_on_with(folder: str, large: Path, patient: Patient) -> None:
    store = patient(folder)
    elsewhere = Store(f"{folder}-2")
    entry = elsewhere.push(large).entry
    hidden = Path(folder) / entry.recipe_id / f".{entry.data_name.rpartition('/')[2]}.part"
    hidden.parent.mkdir(parents=True)
    hidden.write_bytes(bytes(500_000))
    assert store.push(large).entry.sha256 == entry.sha256
    assert_whole(store)
    assert (Path(folder) / entry.data_name).read_bytes() == (Path(f"{folder}-2") / entry.data_name).read_bytes()
    assert not hidden.exists()


def test_a_place_that_shows_unfinished_files_gets_them_under_other_names(
    folder: str, small: Path, tmp_path: Path
) -> None:
    from cache.store.moving import MovingFiles

    store = Store(folder)
    store.__dict__["files"] = files = MovingFiles(store.address, store._patience)
    shown: list[str] = []
    put = files.fs.put_file

    def watched(source: str, target: str) -> None:
        shown.append(target)
        put(source, target)

    files.fs.put_file = watched
    entry = store.push(small).entry
    assert all(name.rpartition("/")[2].startswith(".") for name in shown)
    assert sorted(files.sizes()) == sorted([entry.name, entry.data_name])
    store.pull(entry, tmp_path / "out.h5")
    (empty := tmp_path / "empty").touch()
    files.fs.put_file = lambda source, target: put(str(empty), target)
    Path(folder, entry.data_name).unlink()
    with pytest.raises(CacheError, match=r"has 0 of .* bytes after an upload"):
        store.push(small)
    assert sorted(files.sizes()) == [entry.name]
