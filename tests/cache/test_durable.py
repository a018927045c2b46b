import errno
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cache import durable
from cache.errors import CacheBusy, CacheDiskFull, CacheError

HOLD = """
import sys, time
from pathlib import Path
from cache.durable import Lock
lock = Lock.acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""
# The worker that a killed writer leaves behind must not keep its lock.
HOLD_AND_FORK = """
import os, signal, sys, time
from pathlib import Path
from cache.durable import Lock
lock = Lock.acquire(Path(sys.argv[1]))
ready, tell = os.pipe()
worker = os.fork()
if worker == 0:
    os.write(tell, b".")
    time.sleep(60)
    os._exit(0)
os.read(ready, 1)
print(worker, flush=True)
time.sleep(60)
"""


def test_a_second_holder_is_told_host_and_pid_until_the_first_is_killed(tmp_path):
    path = tmp_path / "t.h5.parts" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "held\n"
            with pytest.raises(CacheBusy, match=f"host {socket.gethostname()} pid {child.pid}"):
                durable.Lock.acquire(path)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    durable.Lock.acquire(path).release()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD_AND_FORK, str(path)], stdout=subprocess.PIPE, text=True) as child:
        worker = int(child.stdout.readline())
        try:
            child.send_signal(signal.SIGKILL)
            child.wait()
            os.kill(worker, 0)
            durable.Lock.acquire(path).release()
        finally:
            os.kill(worker, signal.SIGKILL)


def test_lock_is_exclusive_within_a_process_and_may_be_taken_again(tmp_path):
    lock = durable.Lock.acquire(tmp_path / "lock")
    with pytest.raises(CacheBusy, match=f"pid {os.getpid()}"):
        durable.Lock.acquire(tmp_path / "lock")
    lock.release()
    lock.release()
    durable.Lock.acquire(tmp_path / "lock").release()


def test_lock_on_a_removed_file_is_not_a_lock(tmp_path, monkeypatch):
    path = tmp_path / "parts" / "lock"
    lock_file, races = durable._try_lock, []

    def removed_meanwhile(fd, name):
        if not races:
            races.append(os.fstat(fd).st_ino)
            os.unlink(path)
            path.parent.rmdir()
        return lock_file(fd, name)

    monkeypatch.setattr(durable, "_try_lock", removed_meanwhile)
    lock = durable.Lock.acquire(path)
    assert len(races) == 1
    assert path.read_text() == f"host {socket.gethostname()} pid {os.getpid()}\n"
    with pytest.raises(CacheBusy):
        durable.Lock.acquire(path)
    lock.release()


def test_a_lock_holds_also_where_the_disk_has_no_room_for_its_text(tmp_path, monkeypatch):
    def full(fd, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.os, "ftruncate", full)
    lock = durable.Lock.acquire(tmp_path / "lock")
    with pytest.raises(CacheBusy, match="holder unknown"):
        durable.Lock.acquire(tmp_path / "lock")
    lock.release()


def test_a_new_folder_is_synced_into_the_one_around_it_once(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "fsync_folder", synced.append)
    for _ in range(2):
        durable.Lock.acquire(tmp_path / "t.h5.parts" / "lock").release()
    assert synced == [tmp_path]


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(fd, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(durable.fcntl, "flock", no_locks)
    durable.Lock.acquire(tmp_path / "lock").release()
    assert "no locks" in caplog.text


@pytest.fixture
def durable_on_a_mac(monkeypatch):
    """The module as it is loaded where EOPNOTSUPP is another number than ENOTSUP."""
    monkeypatch.setattr(errno, "EOPNOTSUPP", 102)
    spec = importlib.util.spec_from_file_location("durable_on_a_mac", durable.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def not_supported(*_):
    raise OSError(errno.ENOTSUP, "Operation not supported")


def test_a_mac_without_links_and_locks_publishes_and_warns(durable_on_a_mac, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(os, "link", not_supported)
    monkeypatch.setattr(durable_on_a_mac.fcntl, "flock", not_supported)
    durable_on_a_mac.Lock.acquire(tmp_path / "lock").release()
    assert "no locks" in caplog.text
    (tmp_path / "temp").write_text("first")
    assert durable_on_a_mac.publish_new(tmp_path / "temp", tmp_path / "final")
    assert (tmp_path / "final").read_text() == "first"


@pytest.mark.parametrize("no_links", [None, errno.EPERM, errno.EINVAL])
def test_publish_new_never_replaces(tmp_path, monkeypatch, no_links):
    def refuse(source, target):
        raise OSError(no_links, os.strerror(no_links))

    if no_links is not None:
        monkeypatch.setattr(os, "link", refuse)
    final = tmp_path / "final"
    for content, published in (("first", True), ("second", False)):
        temp = durable.temp_name(final)
        temp.write_text(content)
        assert durable.publish_new(temp, final) is published
        assert final.read_text() == "first"
    assert list(tmp_path.iterdir()) == [final]


def test_publish_new_passes_other_errors_on(tmp_path):
    with pytest.raises(FileNotFoundError):
        durable.publish_new(tmp_path / "none.tmp", tmp_path / "final")


def test_temp_names_do_not_repeat():
    names = {durable.temp_name(Path("t.h5")).name for _ in range(50)}
    assert len(names) == 50
    assert all(name.startswith("t.h5.") and name.endswith(".tmp") for name in names)


def test_allocate_makes_the_file_that_long_without_posix_fallocate(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    with open(tmp_path / "f", "x+b") as file:
        durable.allocate(file.fileno(), 3_000_001)
    assert (tmp_path / "f").stat().st_size == 3_000_001


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_becomes_an_error_that_names_the_bytes(code):
    with pytest.raises(CacheDiskFull, match=r"1,234,567 bytes in /.*folder .*run the same command again"):  # noqa: SIM117
        with durable.disk_errors(Path("folder/t.h5"), 1_234_567):
            raise OSError(code, os.strerror(code))


def test_other_disk_errors_become_cache_errors():
    with pytest.raises(CacheError, match=r"cannot write folder/t\.h5: Input/output error"):  # noqa: SIM117
        with durable.disk_errors(Path("folder/t.h5"), 1):
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    durable.write_atomic(path, b"old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "fsync_file", full)
    with pytest.raises(CacheDiskFull):
        durable.write_atomic(path, b"new")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("plan.json", b"old")]


def test_who_holds_a_file_is_alone_and_clears_what_killed_ones_left(tmp_path: Path) -> None:
    final = tmp_path / "m[1].pt"
    left, foreign = durable.temp_name(final), durable.temp_name(tmp_path / "m1.pt")
    for path in (left, foreign):
        path.touch()
    with durable.held(final):
        assert not left.exists()
        assert foreign.exists()
        with pytest.raises(CacheBusy, match="another process is writing this output"), durable.held(final):
            pass
    assert list(tmp_path.iterdir()) == [foreign]
