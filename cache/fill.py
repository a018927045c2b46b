"""Write one new cache file, segment or merge: skeleton, disk space, rows at their offsets, CRCs, seal, fsync.

Never gives a file its real name (`cache.durable` does) and never writes through libhdf5: `cache.skeleton` makes its
part in memory, so a full disk or a kill meets plain writes only (inside libhdf5 a full disk ends in a crash at exit).
Run: `softlabel cache build DATA -o t.h5`.
"""

from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np

from cache import durable
from cache.guard import read_object
from cache.layout import Extent, Spec, Table, crc_table, encode_name, is_big, runs, seal_of
from cache.manifest import Manifest
from cache.skeleton import skeleton


class NewFile:
    """An unsealed file under a temporary name, removed unless `seal` was reached; rows are put in any order."""

    def __init__(self, temp: Path, specs: dict[str, Spec]) -> None:
        self.temp = temp
        self.extents, pieces, self.n_bytes = skeleton(specs)
        self._sealed = False
        with durable.disk_errors(temp, self.n_bytes):
            self._file = open(temp, "x+b", buffering=0)  # noqa: SIM115 (closed by __exit__)
            try:
                durable.allocate(self._file.fileno(), self.n_bytes)
                for offset, piece in pieces:
                    self._write(offset, piece)
            except BaseException:
                self.__exit__(None, None, None)
                raise

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self._sealed:
            with suppress(OSError):
                self.temp.unlink(missing_ok=True)

    def put(self, name: str, array: np.ndarray, first_entry: int = 0) -> None:
        """Write consecutive entries of an object, from `first_entry` on; dtype and entry shape must be the object's."""
        spec, offset = self.extents[name]
        assert (array.dtype, array.shape[1:]) == (spec.dtype, spec.shape[1:]), (name, array.dtype, array.shape)
        assert first_entry + len(array) <= spec.shape[0], name
        entry_bytes = spec.n_bytes // spec.shape[0]
        with durable.disk_errors(self.temp, self.n_bytes):
            self._write(offset + first_entry * entry_bytes, np.ascontiguousarray(array).reshape(-1).view("u1").data)

    def scatter(self, name: str, array: np.ndarray, entries: np.ndarray) -> None:
        """Write entry i of `array` to entry `entries[i]` (int64, ascending) of an object; runs go in one write each."""
        for start, stop in runs(entries):
            self.put(name, array[start:stop], int(entries[start]))

    def get(self, name: str, first_entry: int, stop_entry: int) -> np.ndarray:
        """Read back consecutive entries."""
        (dtype, shape), offset = self.extents[name]
        entry_bytes = Spec(dtype, (1, *shape[1:])).n_bytes
        part = Extent(Spec(dtype, (stop_entry - first_entry, *shape[1:])), offset + first_entry * entry_bytes)
        return read_object(self._file, part)

    def gather(self, name: str, entries: np.ndarray) -> np.ndarray:
        """Read back the entries (int64, ascending) of an object."""
        return np.concatenate(
            [self.get(name, int(entries[start]), int(entries[stop - 1]) + 1) for start, stop in runs(entries)]
        )

    def seal(self, manifest: Manifest) -> None:
        """Write manifest, CRC tables and seal, then bring it all to the disk; the temporary file stays, closed."""
        self.put("manifest", np.frombuffer(manifest.to_bytes(), "u1"))
        for name, (spec, _) in self.extents.items():
            if is_big(name):
                crcs = crc_table(spec.shape[0], partial(self.get, name))
                self.put(f"crc32/{name}", crcs)
        specs = {name: extent.spec for name, extent in self.extents.items()}
        seal = seal_of(specs, lambda name: durable.chunks(self._file, self.extents[name].offset, specs[name].n_bytes))
        self.put("seal", np.frombuffer(seal, "u1"))
        with durable.disk_errors(self.temp, self.n_bytes):
            durable.fsync_file(self._file.fileno())
        self._sealed = True
        self._file.close()

    def _write(self, offset: int, content: bytes | memoryview) -> None:
        self._file.seek(offset)
        left = memoryview(content)
        while left:  # a disk that fills up gives a short write first, the error only on the next
            left = left[self._file.write(left) :]


def write_table(temp: Path, manifest: Manifest, table: Table) -> None:
    """Write a whole sealed file under a temporary name."""
    table.check_against(manifest)
    specs = table.dims(manifest_bytes=len(manifest.to_bytes())).specs()
    with NewFile(temp, specs) as new:
        for name, array in table.objects().items():
            new.put(name, array)
        if table.names is not None:
            put_names(new, table.names)
        new.seal(manifest)


def put_names(new: NewFile, names: list[str]) -> None:
    """Write `samples/name`, whose width the specs already fit."""
    encoded = [encode_name(name) for name in names]
    new.put("samples/name", np.array(encoded, dtype=new.extents["samples/name"].spec.dtype))
