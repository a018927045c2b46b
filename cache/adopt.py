"""Copy some rows of a sealed cache into a new sealed file, piece by piece.

Never decides which rows are wanted and never gives the file its name (`cache.writer` does).
Run: `softlabel cache build DATA -o t.h5 --reuse OLD.h5`

Legend: N samples, R rows = (sample, view), M wanted.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from cache.fill import NewFile, put_names
from cache.layout import KEY_BYTES, encode_name, is_big
from cache.manifest import SKIPPED, SKIPPED_FILES, Manifest
from cache.reader import CacheReader
from cache.rows import Pair
from cache.survey import MERGED_FROM

_OF_THE_FILE = (SKIPPED, SKIPPED_FILES, MERGED_FROM)
"""What a provenance says of the whole file, and not of its rows."""


def rows_of(reader: CacheReader, wanted: Collection[Pair]) -> np.ndarray:
    """The rows of those (key, view) that a cache has, int64 (R,), ascending."""
    keys = np.frombuffer(b"".join(key for key, _ in wanted), np.uint8).reshape(-1, KEY_BYTES)
    rows = reader.row(reader.find(keys), np.fromiter((view for _, view in wanted), np.int64, len(wanted)))
    return np.unique(rows[rows >= 0])


def copy_rows(temp: Path, reader: CacheReader, rows: np.ndarray, names: Mapping[bytes, str] | None) -> None:
    """Write rows (int64, ascending) of a cache as a whole sealed file under a temporary name.

    `names` (key -> name for people) replaces the cache's own; they are for all samples or for none. CacheDamaged where
    the cache does not verify, or has numbers that are not finite.
    """
    samples, counts = np.unique(reader.sample_of_row[rows], return_counts=True)
    key, stored = reader.keys[samples], reader.names
    if names is None:
        named = None if stored is None else [stored[at] for at in samples.tolist()]
    else:
        found = [names.get(bytes(one)) for one in key]
        named = [name for name in found if name is not None]
        named = named if len(named) == len(found) else None
    provenance = {name: value for name, value in reader.manifest.provenance.items() if name not in _OF_THE_FILE}
    manifest = Manifest(reader.manifest.identity, provenance)
    dims = dataclasses.replace(
        reader.dims,
        manifest_bytes=len(manifest.to_bytes()),
        n_samples=len(key),
        n_rows=len(rows),
        name_bytes=None if named is None else max(1, *(len(encode_name(name)) for name in named)),
    )
    reader.verify()
    with NewFile(temp, dims.specs()) as new:
        new.put("samples/key", key)
        new.put("samples/first_row", np.cumsum([0, *counts]).astype("<u8"))
        new.put("rows/view", reader.view[rows])
        if named is not None:
            put_names(new, named)
        for name in filter(is_big, new.extents):
            _put_rows(new, name, reader, rows)
        new.seal(manifest)


def _put_rows(new: NewFile, name: str, reader: CacheReader, rows: np.ndarray) -> None:
    for part in new.extents[name].spec.stretches():
        new.put(name, reader.read_object(name, rows[part]), part.start)
