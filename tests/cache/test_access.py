import errno
import io
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cache import CacheReader, access, guard
from cache.errors import CacheDamaged, CacheError

READ_IN_WORKERS = Path(__file__).with_name("read_in_workers.py")
WAYS = [pytest.param(True, id="mapped"), pytest.param(False, id="read")]


@pytest.fixture
def path(sealed, tmp_path):
    return Path(shutil.copy(sealed, tmp_path / "t.h5"))


def written_over(path, content):
    """As `cp` does it: the same file, cut to nothing and filled again."""
    path.write_bytes(content)
    later_ns = path.stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(later_ns, later_ns))


@pytest.mark.parametrize("memory_map", WAYS)
@pytest.mark.parametrize(
    "rows", [slice(1, 4), slice(None), slice(4, 1, -2), slice(3, 3), [3, 0, 1, 2, 2], [], 2, [[0, 1], [4, 5]]]
)
def test_rows_are_those_of_the_table_however_they_are_asked_for(make, path, memory_map, rows):
    reader, table = CacheReader(path, memory_map=memory_map), make.table()
    wanted = rows if isinstance(rows, slice) else np.array(rows, int)
    for got, stored in [
        (reader.logits(rows), table.logits["class"]),
        (reader.params(rows), table.params),
        (reader.feature(rows), table.features["embedding"]),
    ]:
        assert got.dtype == stored.dtype
        assert np.array_equal(got, stored[wanted])
        got[...] = 0
    assert np.array_equal(reader.logits(rows), table.logits["class"][wanted])


@pytest.mark.parametrize("memory_map", WAYS)
def test_a_file_that_is_replaced_by_rename_is_read_on_as_it_was(make, path, tmp_path, memory_map):
    reader = CacheReader(path, memory_map=memory_map)
    before = reader.logits([0, 1])
    os.replace(make.write(tmp_path / "new.h5", make.table(seed=1)), path)
    assert np.array_equal(reader.logits([0, 1]), before)
    path.unlink()
    assert np.array_equal(reader.logits([0, 1]), before)


@pytest.mark.parametrize("memory_map", WAYS)
@pytest.mark.parametrize(
    "kind", ["another cache", "another cache of the same sizes", "cut off", "emptied", "a changed row"]
)
def test_a_file_that_is_written_over_in_place_is_refused_and_never_mixed(make, path, tmp_path, memory_map, kind):
    reader = CacheReader(path, memory_map=memory_map)
    reader.logits([0])
    content = {
        "another cache": lambda: make.write(tmp_path / "n.h5", make.table(seed=1, n_samples=9)).read_bytes(),
        "another cache of the same sizes": lambda: make.write(tmp_path / "n.h5", nudged(make.table())).read_bytes(),
        "cut off": lambda: path.read_bytes()[:-50],
        "emptied": lambda: b"",
        "a changed row": lambda: make.flip(path, tmp_path / "n.h5", make.offsets(path)["logits/0"][0], 3).read_bytes(),
    }[kind]()
    written_over(path, content)
    for _ in range(2):
        with pytest.raises(CacheDamaged, match="written over"):
            reader.logits([0])


@pytest.mark.parametrize("memory_map", WAYS)
def test_a_file_that_is_being_written_over_before_the_first_row_is_refused(make, path, tmp_path, memory_map):
    reader = CacheReader(path, memory_map=memory_map)
    other = make.write(tmp_path / "n.h5", nudged(make.table())).read_bytes()
    with path.open("r+b") as file:  # as `rsync --inplace` does it, and it has not come to the seal
        file.write(other[: make.offsets(path)["seal"][0]])
    with pytest.raises(CacheDamaged, match="written over"):
        reader.logits([0])


@pytest.mark.skipif(os.name != "posix", reason="the time of the last change of an inode")
@pytest.mark.parametrize("memory_map", WAYS)
def test_a_file_that_is_written_over_and_given_its_old_times_is_refused(make, path, tmp_path, memory_map):
    reader = CacheReader(path, memory_map=memory_map)
    reader.logits([0])
    before = path.stat()
    path.write_bytes(make.write(tmp_path / "n.h5", nudged(make.table())).read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CacheDamaged, match="written over"):
        reader.logits([0])


@pytest.mark.parametrize("memory_map", WAYS)
def test_threads_read_on_beside_one_that_looks_again(make, path, memory_map, monkeypatch):
    reader, inspections = CacheReader(path, memory_map=memory_map), []
    reader.logits([0])
    inspect = access.inspect

    def slow(file, its_path, **options):
        inspections.append(its_path)
        time.sleep(0.05)
        return inspect(file, its_path, **options)

    monkeypatch.setattr(access, "inspect", slow)
    os.utime(path)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(reader.logits, [slice(None)] * 8))
    assert all(np.array_equal(one, make.table().logits["class"]) for one in rows)
    assert len(inspections) == 1


def test_a_file_that_is_touched_all_the_time_is_told_as_such(path, monkeypatch):
    reader = CacheReader(path)
    copy = access.RowFile._mapped

    def copied_beside_a_toucher(self, name, rows):
        os.utime(path)
        return copy(self, name, rows)

    monkeypatch.setattr(access.RowFile, "_mapped", copied_beside_a_toucher)
    with pytest.raises(CacheError, match="is being written to at this moment"):
        reader.logits([0])


def nudged(table):
    table.logits["class"][:] += 1
    return table


@pytest.mark.parametrize("memory_map", WAYS)
def test_the_same_file_copied_over_itself_is_read_on(make, path, memory_map):
    reader = CacheReader(path, memory_map=memory_map)
    reader.logits([0])
    written_over(path, path.read_bytes())
    assert np.array_equal(reader.logits([0, 1]), make.table().logits["class"][:2])


@pytest.mark.parametrize("memory_map", WAYS)
def test_rows_that_changed_while_they_were_copied_are_not_handed_out(path, monkeypatch, memory_map):
    reader = CacheReader(path, memory_map=memory_map)
    reader.logits([0])
    way = "_mapped" if memory_map else "_read"
    copy = getattr(access.RowFile, way)

    def copied_beside_a_writer(self, name, rows):
        values = copy(self, name, rows)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        written_over(path, path.read_bytes())
        return values

    monkeypatch.setattr(access.RowFile, way, copied_beside_a_writer)
    with pytest.raises(CacheDamaged, match="written over"):
        reader.logits([0])


def test_a_drive_that_cannot_map_files_is_read(make, path, monkeypatch):
    def no_map(*args, **options):
        raise OSError(19, "No such device")

    monkeypatch.setattr(access.mmap, "mmap", no_map)
    make.assert_equal(CacheReader(path).table(), make.table())


def test_a_drive_that_goes_away_is_told(path, monkeypatch):
    reader = CacheReader(path, memory_map=False)
    reader.logits([0])

    def gone(fd, what, offset):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", gone)
    monkeypatch.setattr(os, "pread", gone)
    for read in (lambda: reader.logits([0]), reader.verify, lambda: CacheReader(path)):
        with pytest.raises(CacheError, match=r"cannot read .*t\.h5 \(Input/output error\)") as caught:
            read()
        assert not isinstance(caught.value, CacheDamaged), "which would set a sound segment aside"


def test_a_drive_that_fails_while_libhdf5_reads_is_no_damage(path):
    class Failing(io.FileIO):
        def readinto(self, buffer):
            raise OSError(errno.EIO, "Input/output error")

    with Failing(path, "rb") as file, pytest.raises(CacheError, match="Input/output error") as caught:
        guard.inspect(file, path)
    assert not isinstance(caught.value, CacheDamaged)


# Reads rows for as long as it is let; every answer must be the old one, or one clear error and no signal.
READ_ON = """
import sys, numpy as np
from cache import CacheReader, CacheError
reader = CacheReader(sys.argv[1], memory_map=False)
first = reader.logits(slice(None))
print("reading", flush=True)
try:
    while True:
        assert np.array_equal(reader.logits(slice(None)), first), "mixed rows"
except CacheError as error:
    print(error, flush=True)
    sys.exit(3)
"""


@pytest.mark.parametrize("kind", ["emptied", "another cache"])
def test_a_process_that_reads_a_file_while_it_is_written_over_ends_with_a_message(make, path, tmp_path, kind):
    other = make.write(tmp_path / "n.h5", make.table(seed=1, n_samples=9)).read_bytes()
    process = subprocess.Popen([sys.executable, "-c", READ_ON, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "reading\n"
        time.sleep(0.1)
        path.write_bytes(b"" if kind == "emptied" else other)
        assert "written over" in process.stdout.read()
    assert process.returncode == 3


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_reader_works_in_workers_of_every_kind_and_their_errors_arrive_whole(make, path, tmp_path, method):
    other = make.write(tmp_path / "other.h5", make.table(seed=1))
    done = subprocess.run(
        [sys.executable, READ_IN_WORKERS, method, path, other], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    rows, error = done.stdout.splitlines()
    assert rows == str(make.table().logits["class"][[2, 0]].tolist())
    assert error.startswith("CacheDamaged: ")
    assert "was replaced by another cache, or written over, while in use" in error
