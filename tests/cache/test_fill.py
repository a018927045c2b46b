import errno
import os

import numpy as np
import pytest

from cache import CacheReader, durable
from cache.errors import CacheDiskFull, CacheError
from cache.fill import NewFile, skeleton


class ShortWrites:
    """A file that takes seven bytes at a time, as a disk does that is filling up."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        return self._file.write(content[:7])


def test_short_writes_are_continued(make, tmp_path):
    table, manifest = make.table(names=False), make.manifest()
    with NewFile(tmp_path / "t.h5", table.dims(manifest_bytes=len(manifest.to_bytes())).specs()) as new:
        new._file = ShortWrites(new._file)
        for name, array in table.objects().items():
            new.put(name, array)
        new.seal(manifest)
    with CacheReader(tmp_path / "t.h5") as reader:
        reader.verify()
        make.assert_equal(reader.table(), table)


def test_scattered_rows_are_gathered_again(make, tmp_path):
    table = make.table(n_samples=8)
    values, order = table.features["embedding"], np.array([0, 1, 4, 5, 6, 9])
    with NewFile(tmp_path / "t.h5", table.dims(manifest_bytes=1).specs()) as new:
        new.scatter("features/embedding", values[: len(order)], order)
        assert np.array_equal(new.gather("features/embedding", order), values[: len(order)])
        assert np.array_equal(new.get("features/embedding", 4, 7), values[2:5])


def test_a_file_that_was_not_sealed_is_removed(make, tmp_path):
    with NewFile(tmp_path / "t.h5", make.table().dims(manifest_bytes=1).specs()):
        assert (tmp_path / "t.h5").exists()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_opened_for_writing(make, tmp_path):
    (tmp_path / "t.h5").write_text("mine")
    with pytest.raises(CacheError, match="cannot write"):
        NewFile(tmp_path / "t.h5", make.table().dims(manifest_bytes=1).specs())
    assert (tmp_path / "t.h5").read_text() == "mine"


def test_the_disk_is_asked_for_the_whole_length_before_any_write(make, tmp_path, monkeypatch):
    asked = []

    def full(fd, size_bytes):
        asked.append((os.fstat(fd).st_size, size_bytes))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "allocate", full)
    specs = make.table().dims(manifest_bytes=1).specs()
    with pytest.raises(CacheDiskFull, match=f"{skeleton(specs)[2]:,} bytes"):
        NewFile(tmp_path / "t.h5", specs)
    assert asked == [(0, skeleton(specs)[2])]
    assert list(tmp_path.iterdir()) == []
