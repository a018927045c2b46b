"""Hashes that are remembered: right ones or none, whatever happened to the file they are in."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from data import files as files_module
from data import hashes as module
from data.files import hash_files
from data.samples import content_key

DAY_S = 86_400


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Files that have not been changed for a minute."""
    paths = []
    for number in range(5):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"image %d" % number)
        paths.append(str(path))
    return paths


@pytest.fixture
def memo(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "hashes.sqlite"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`later(s)`: from now on the clock is so much ahead; a minute at first, so that no file has just been changed."""
    now = module.time.time

    def later(seconds: float) -> None:
        monkeypatch.setattr(module.time, "time", lambda: now() + seconds)

    later(60)
    return later


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed."""
    names: list[str] = []
    key_of = files_module._key_of

    def counting(path: str, status: os.stat_result) -> object:
        names.append(Path(path).name)
        return key_of(path, status)

    monkeypatch.setattr(files_module, "_key_of", counting)
    return names


Later = Callable[[float], None]


def right(images: list[str]) -> list[bytes]:
    return [content_key(Path(path).read_bytes()) for path in images]


def test_a_second_scan_reads_no_file(images: list[str], memo: Path, later: Later, read: list[str]) -> None:
    assert hash_files(images, memo) == (right(images), [])
    assert len(read) == 5
    assert hash_files(list(reversed(images)), memo) == (right(images)[::-1], [])
    assert len(read) == 5


def test_without_a_memo_nothing_is_written(images: list[str], tmp_path: Path, read: list[str]) -> None:
    for _ in range(2):
        assert hash_files(images)[0] == right(images)
    assert len(read) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_more_files_than_one_query_takes(tmp_path: Path, memo: Path, later: Later, read: list[str]) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(2_100)]
    for number, path in enumerate(paths):
        Path(path).write_bytes(b"%d" % number)
    for _ in range(2):
        assert hash_files(paths, memo) == (right(paths), [])
    assert len(read) == 2_100


def same_size(path: Path) -> None:
    path.write_bytes(b"other 3")


def same_time(path: Path) -> None:
    """As an unpacked archive does: the old modification time, but never the old time of the inode's change."""
    status = path.stat()
    path.write_bytes(b"other 3")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"other 3")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [same_size, same_time, replaced])
def test_a_file_that_changed_is_hashed_anew(
    change: Callable[[Path], None], images: list[str], memo: Path, later: Later, read: list[str]
) -> None:
    hash_files(images, memo)
    change(Path(images[3]))
    read.clear()
    assert hash_files(images, memo)[0] == right(images)
    assert read == ["3.png"]


def test_a_file_that_changed_just_now_is_not_remembered(images: list[str], memo: Path, read: list[str]) -> None:
    """Within the resolution of its time stamps it may change once more, unseen."""
    for _ in range(2):
        hash_files(images, memo)
    assert len(read) == 10


def test_bad_files_are_never_remembered(images: list[str], memo: Path, later: Later) -> None:
    Path(images[2]).write_bytes(b"")
    for _ in range(2):
        keys, (bad,) = hash_files(images, memo)
        assert (bad.path, bad.reason) == (images[2], "the file is empty")
        assert keys[2] is None


def test_names_that_are_no_utf_8_are_remembered(tmp_path: Path, memo: Path, later: Later, read: list[str]) -> None:
    path = os.path.join(tmp_path, os.fsdecode(b"caf\xe9.png"))
    try:
        Path(path).write_bytes(b"image")
    except OSError:
        pytest.skip("this system has no such names")
    for _ in range(2):
        assert hash_files([path], memo)[0] == [content_key(b"image")]
    assert len(read) == 1


def garbage(memo: Path) -> None:
    memo.write_bytes(b"not sqlite at all" * 500)


def cut(memo: Path) -> None:
    os.truncate(memo, memo.stat().st_size // 2)


def is_folder(memo: Path) -> None:
    memo.unlink()
    memo.mkdir()


def other_columns(memo: Path) -> None:
    memo.unlink()
    with sqlite3.connect(memo) as other:
        other.execute("CREATE TABLE hashes_1 (name TEXT)")
    other.close()


def wrong_key(memo: Path) -> None:
    with sqlite3.connect(memo) as other:
        other.execute("UPDATE hashes_1 SET key = zeroblob(20)")
    other.close()


def other_key(memo: Path) -> None:
    """Bits that flipped on the disk: the checksum does not fit."""
    with sqlite3.connect(memo) as other:
        for name, key in other.execute("SELECT name, key FROM hashes_1").fetchall():
            other.execute("UPDATE hashes_1 SET key = ? WHERE name = ?", (bytes([key[0] ^ 1]) + key[1:], name))
    other.close()


def nonsense(memo: Path) -> None:
    with sqlite3.connect(memo) as other:
        other.execute("UPDATE hashes_1 SET stamp = 5, day = 'x', key = 'text'")
    other.close()


@pytest.mark.parametrize("damage", [garbage, cut, is_folder, other_columns, wrong_key, other_key, nonsense])
def test_a_damaged_memo_stops_nothing_and_gives_no_wrong_key(
    damage: Callable[[Path], None], images: list[str], memo: Path, later: Later, caplog: pytest.LogCaptureFixture
) -> None:
    hash_files(images, memo)
    damage(memo)
    for _ in range(3):
        assert hash_files(images, memo) == (right(images), [])
    assert caplog.messages == []


def test_a_memo_that_was_damaged_remembers_again(images: list[str], memo: Path, later: Later, read: list[str]) -> None:
    hash_files(images, memo)
    garbage(memo)
    for _ in range(3):
        hash_files(images, memo)
    assert len(read) == 15, "hashed, hashed as the memo was damaged, remembered in a new one, known"


def test_a_locked_memo_stops_nothing(
    images: list[str], memo: Path, later: Later, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    monkeypatch.setattr(module, "_WAIT_S", 0.01)
    hash_files(images, memo)
    with sqlite3.connect(memo, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert hash_files(images, memo)[0] == right(images)
        other.execute("ROLLBACK")
    other.close()
    assert len(read) == 10
    hash_files(images, memo)
    assert len(read) == 10, "it is still there"


def test_a_memo_that_cannot_be_made_stops_nothing(images: list[str], tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(b"x")
    assert hash_files(images, tmp_path / "a file" / "hashes.sqlite")[0] == right(images)


def test_a_full_disk_stops_nothing(
    images: list[str], memo: Path, later: Later, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    with file_limit(5_000):
        assert hash_files(images, memo)[0] == right(images)
    assert hash_files(images, memo)[0] == right(images)


def rows(memo: Path) -> int:
    with sqlite3.connect(memo) as other:
        (n,) = other.execute("SELECT count(*) FROM hashes_1").fetchone()
    other.close()
    return int(n)


def test_hashes_that_nobody_asked_for_in_90_days_are_forgotten(images: list[str], memo: Path, later: Later) -> None:
    hash_files(images[:3], memo)
    later(60 * DAY_S)
    hash_files(images[:2], memo)
    later(100 * DAY_S)
    hash_files(images[3:], memo)
    assert rows(memo) == 4, "but those that were asked for meanwhile stay"


def test_the_number_of_remembered_files_is_bounded(
    images: list[str], memo: Path, later: Later, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    monkeypatch.setattr(module, "_MAX_FILES", 2)
    hash_files(images[:2], memo)
    later(2 * DAY_S)
    hash_files(images[2:4], memo)
    assert rows(memo) == 2
    read.clear()
    hash_files(images[2:4], memo)
    assert read == [], "the newest stay"
