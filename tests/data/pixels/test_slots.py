"""A file of slots gives back what was written, or nothing: whatever happened to it meanwhile."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.pixels import slots
from data.pixels.slots import SlotFile, header_of

FileLimit = Callable[[int], AbstractContextManager[None]]
IDENTITY = {"kind": "views", "table": "a1"}
N_SLOTS, N_BYTES = 7, 300


def opened(path: Path, *, begun: bool = True, identity: dict[str, str] = IDENTITY) -> SlotFile:
    file = SlotFile(path, identity, N_SLOTS, N_BYTES)
    if begun:
        file.begin()
    return file


def content(slot: int) -> memoryview:
    return memoryview(np.random.default_rng(slot).integers(0, 256, N_BYTES, dtype=np.uint8).data)


def found(file: SlotFile, slot: int) -> bytes | None:
    buffer = memoryview(bytearray(N_BYTES))
    return bytes(buffer) if file.read(slot, buffer) else None


def filled(path: Path) -> SlotFile:
    file = opened(path)
    for slot in range(N_SLOTS):
        file.write(slot, content(slot))
    return file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """In a folder that is not there yet."""
    return tmp_path / "t.h5.pixels" / "views.pixels"


def test_a_slot_is_absent_until_it_is_written_and_then_there_for_every_process(path: Path) -> None:
    one, other = opened(path), opened(path)
    assert found(one, 3) is None
    one.write(3, content(3))
    assert found(one, 3) == content(3)
    assert found(other, 3) is None, "it looked before the file was there"
    other.write(5, content(5))
    assert [found(other, slot) for slot in (3, 4, 5)] == [content(3), None, content(5)]
    assert found(one, 5) == content(5), "what another one wrote meanwhile"
    assert opened(path).stands().tolist() == [False, False, False, True, False, True, False]


def test_slots_may_have_any_lengths(path: Path) -> None:
    starts = np.array([0, 5, 5, 105])
    file = SlotFile(path, IDENTITY, 3, starts)
    file.begin()
    for slot, length in ((2, 100), (0, 5)):
        file.write(slot, content(slot)[:length])
    again, buffer = SlotFile(path, IDENTITY, 3, starts), bytearray(100)
    assert again.read(2, memoryview(buffer))
    assert buffer == content(2)[:100]
    assert again.read(0, memoryview(buffer)[:5])
    assert not again.read(1, memoryview(buffer)[:0])


def test_nothing_is_made_before_it_begins(path: Path) -> None:
    file = opened(path, begun=False)
    file.write(0, content(0))
    assert not path.parent.exists()
    assert not file.lacks(0)


def test_a_file_of_another_identity_is_none_of_ours_and_is_replaced(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path)
    other = opened(path, identity={**IDENTITY, "table": "b2"})
    assert not other.stands().any()
    with caplog.at_level(logging.INFO):
        other.write(0, content(9))
    assert "is made anew" in caplog.text
    assert (found(other, 0), found(other, 1)) == (content(9), None)


@given(at=st.integers(0, slots._up(1) * 2 + N_SLOTS * N_BYTES - 1), bit=st.integers(0, 7))
def test_no_flipped_bit_is_ever_shown(at: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("flipped") / "views.pixels"
    filled(path)
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1 << bit
    path.write_bytes(damaged)
    file = opened(path)
    assert all(found(file, slot) in (None, content(slot)) for slot in range(N_SLOTS))
    for slot in range(N_SLOTS):
        if found(file, slot) is None:
            file.write(slot, content(slot))
    assert [found(opened(path), slot) for slot in range(N_SLOTS)] == [content(slot) for slot in range(N_SLOTS)]


@pytest.mark.parametrize("n_bytes", [0, 1, 50, 4095, 4096, 8191, 8192, 9000])
def test_a_file_that_was_cut_off_is_made_anew(n_bytes: int, path: Path) -> None:
    filled(path)
    os.truncate(path, n_bytes)
    file = opened(path)
    assert [found(file, slot) for slot in range(N_SLOTS)] == [None] * N_SLOTS
    file.write(1, content(1))
    assert found(opened(path), 1) == content(1)


def test_a_file_that_is_cut_off_or_removed_while_it_is_read_costs_its_slots_alone(path: Path) -> None:
    file = filled(path)
    os.truncate(path, 8192 + 2 * N_BYTES)
    assert [found(file, slot) for slot in range(3)] == [content(0), content(1), None]
    file.write(2, content(2))
    path.unlink()
    path.parent.rmdir()
    assert [found(file, slot) for slot in range(3)] == [content(0), content(1), content(2)]
    other = opened(path)
    other.write(4, content(4))
    assert (found(other, 4), found(file, 4)) == (content(4), None)


def test_what_is_no_file_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.mkdir(parents=True)
    file = opened(path)
    file.write(0, content(0))
    assert found(file, 0) is None
    assert path.is_dir()
    assert len(caplog.records) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    assert not opened(path, begun=False).stands().any()


def test_a_full_disk_ends_the_writing_with_one_line_and_keeps_what_stands(
    path: Path, file_limit: FileLimit, caplog: pytest.LogCaptureFixture
) -> None:
    file = opened(path)
    file.write(0, content(0))
    with file_limit(8192 + N_BYTES + 10):
        for slot in range(1, N_SLOTS):
            file.write(slot, content(slot))
    assert [found(file, slot) for slot in range(3)] == [content(0), None, None]
    assert len(caplog.records) == 1
    assert "pixels are no longer kept in" in caplog.text
    assert "the run goes on without" in caplog.text
    assert not file.lacks(1), "nobody renders a view in advance that is not kept"


def test_a_disk_without_room_for_the_file_is_the_same(
    path: Path, file_limit: FileLimit, caplog: pytest.LogCaptureFixture
) -> None:
    file = opened(path)
    with file_limit(4096):
        file.write(0, content(0))
    assert len(caplog.records) == 1
    assert list(path.parent.iterdir()) == []


def test_the_last_of_the_disk_is_left_to_others(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = opened(path)
    monkeypatch.setattr(slots, "_SPARED_BYTES", 10**18)
    file.write(0, content(0))
    assert found(file, 0) is None
    assert "MB are left there" in caplog.text


def test_a_file_that_others_own_is_read_only(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path)
    system_open = os.open

    def forbidding(name: Path, flags: int, *more: int, **named: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return system_open(name, flags, *more, **named)

    monkeypatch.setattr(os, "open", forbidding)
    file = opened(path)
    file.write(0, content(9))
    assert found(file, 0) == content(0)
    assert "others may only read it" in caplog.text


def test_another_process_that_was_first_is_joined(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, publish = opened(path), SlotFile._publish

    def overtaken(self: SlotFile, temp: Path) -> None:
        monkeypatch.undo()
        filled(path)
        publish(self, temp)

    monkeypatch.setattr(SlotFile, "_publish", overtaken)
    file.write(2, content(2))
    assert found(file, 6) == content(6)
    assert [one.name for one in path.parent.iterdir()] == [path.name], "nothing is left over"


def test_threads_share_a_file(path: Path) -> None:
    file = opened(path)

    def fill(first: int) -> None:
        for slot in range(N_SLOTS):
            file.write((first + slot) % N_SLOTS, content((first + slot) % N_SLOTS))

    threads = [threading.Thread(target=fill, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found(file, slot) for slot in range(N_SLOTS)] == [content(slot) for slot in range(N_SLOTS)]


def test_it_goes_to_other_processes_by_name(path: Path) -> None:
    file = filled(path)
    again = pickle.loads(pickle.dumps(file))
    assert found(again, 3) == content(3)
    assert again.lacks(3) is False
    again.write(3, content(8))
    assert found(opened(path), 3) == content(8), "it may write as the first one could"


# Writes slots over and over until it is killed.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from data.pixels.slots import SlotFile

file = SlotFile(Path(sys.argv[1]), {"kind": "views", "table": "a1"}, 7, 300)
file.begin()
print("begun", flush=True)
while True:
    for slot in range(7):
        file.write(slot, memoryview(np.random.default_rng(slot).integers(0, 256, 300, dtype=np.uint8).data))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills its writers")
def test_writers_that_are_killed_together_leave_only_whole_slots(path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
    for writer in writers:
        writer.kill()
        writer.communicate()
    file = opened(path)
    assert all(found(file, slot) in (None, content(slot)) for slot in range(N_SLOTS))


def test_the_header_is_readable_and_names_the_identity(path: Path) -> None:
    filled(path)
    assert path.read_bytes().startswith(b'softlabel pixels 1\n{"kind":"views","table":"a1"}\n\0')
    assert len(header_of(IDENTITY)) == 4096
    with pytest.raises(ValueError, match="JSON compliant"):
        header_of({"size": float("nan")})
