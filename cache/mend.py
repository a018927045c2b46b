"""Put a cache in the place of its damaged self: the same file, with other rows where its checksums do not hold.

Never computes a row, and knows only by the sealed checksums which rows are right. The damaged file stays until the new
one is sealed and verified. Run: `softlabel cache repair t.h5 DATA --teacher T`

Legend: R rows = (sample, view).
"""

import dataclasses
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cache import durable
from cache.errors import CacheDamaged, CacheMismatch
from cache.fill import NewFile
from cache.guard import Inspected, inspect, opened
from cache.layout import CRC_ENTRIES, is_big
from cache.manifest import Manifest
from cache.reader import CacheReader
from cache.verify import UNUSED, Block, block_name
from cache.workspace import Workspace

BlockValues = Mapping[Block, np.ndarray]
"""Damaged block -> the rows that are to stand there."""


def as_sealed(path: Path, values: BlockValues) -> dict[Block, bool]:
    """Whether each block would be, bit for bit, what was sealed; CacheDamaged where the tables are damaged, too."""
    tables = _inspected(path).small
    return {
        block: zlib.crc32(np.ascontiguousarray(rows).data) == int(tables[f"crc32/{block[0]}"][block[1] // CRC_ENTRIES])
        for block, rows in values.items()
    }


def mend(workspace: Workspace, values: BlockValues, provenance: Mapping[str, Any]) -> CacheReader:
    """Write the cache `workspace.out` anew with these blocks in it, and open it; bytes of no object become zero.

    `values` has all damaged blocks. `provenance` is added to the manifest's unless every block is what was sealed:
    then the file is, too. The holder of the lock calls this. CacheMismatch where another file took the place
    of the damaged one meanwhile.
    """
    assert workspace.is_held
    out = workspace.out
    temp = durable.temp_name(out, workspace.folder)
    try:
        with CacheReader(out, memory_map=False) as damaged:
            seal, manifest = damaged.seal, damaged.manifest
            if missing := [one for one in damaged.damaged_blocks() if one[0] != UNUSED and one not in values]:
                raise CacheDamaged(f"{out} is damaged in more blocks by now ({block_name(missing[0])}): run it again")
            if not all(as_sealed(out, values).values()):
                manifest = Manifest(manifest.identity, {**manifest.provenance, **provenance})
            _write(temp, damaged, manifest, values)
        _check(temp, out, seal, values)
        with durable.disk_errors(out, 4096):
            durable.publish_replace(temp, out)
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)
    return CacheReader(out)


def _write(temp: Path, damaged: CacheReader, manifest: Manifest, values: BlockValues) -> None:
    """The whole file under a temporary name: what stands, then the blocks over it."""
    tables = _inspected(damaged.path)
    dims = dataclasses.replace(damaged.dims, manifest_bytes=len(manifest.to_bytes()))
    with NewFile(temp, dims.specs()) as new:
        for name in ("samples/key", "samples/first_row", "samples/name", "rows/view"):
            if name in tables.small:
                new.put(name, tables.small[name])
        for name, (spec, _) in new.extents.items():
            if is_big(name):
                for part in spec.stretches():
                    new.put(name, damaged.read_object(name, part), part.start)
        for (name, first, last), rows in values.items():
            assert len(rows) == last - first + 1, name
            new.put(name, rows, first)
        new.seal(manifest)


def _check(temp: Path, out: Path, seal: bytes, values: BlockValues) -> None:
    """The new file verifies, and has the old checksums of all blocks but these; the old one is still the one."""
    with CacheReader(temp, memory_map=False) as written:
        written.verify()
    old, new = _inspected(out), _inspected(temp)
    if old.seal != seal:
        raise CacheMismatch(f"{out} was replaced during the repair and was left alone: run the same command again")
    for name in filter(is_big, old.extents):
        changed = set(np.flatnonzero(old.small[f"crc32/{name}"] != new.small[f"crc32/{name}"]).tolist())
        if others := changed - {first // CRC_ENTRIES for named, first, _ in values if named == name}:
            raise CacheDamaged(f"{out} changed in {name} rows {min(others) * CRC_ENTRIES}- while it was copied: run it "
                               "again")  # fmt: skip


def _inspected(path: Path) -> Inspected:
    with opened(path) as file:
        return inspect(file, path)
