"""Compare every block of 512 rows with its CRC-32: the complete check, which also brings the file into memory.

Never repairs and never trusts a file whose own tables are damaged. Run: `softlabel cache verify FILE.h5`
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cache.errors import CacheDamaged
from cache.guard import Inspected
from cache.layout import CRC_ENTRIES, is_big
from cache.skeleton import holes

Block = tuple[str, int, int]
Piece = Callable[[int, int], memoryview]

UNUSED = "unused bytes"
_SPAN_BYTES = 1 << 20
_MAX_THREADS = 4


def sweep(inspected: Inspected, piece: Piece, objects: Iterable[str] | None = None) -> list[Block]:
    """The damaged blocks of some big objects; of all of them, and of the unused bytes, when `objects` is None.

    Bytes that belong to no object are expected to be zero, and are called "unused bytes" with their offsets.
    `piece(offset, n_bytes)` gives bytes of the file, valid until its next call in the same thread.
    """
    names = sorted(filter(is_big, inspected.extents)) if objects is None else list(objects)
    spans = [(name, *span) for name in names for span in _spans(inspected, name)]
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        parts = pool.map(lambda span: _damaged(inspected, piece, *span), spans)
        found = [block for part in parts for block in part]
    if objects is None:
        found += _used_holes(inspected, piece)
    return found


def refuse_damaged(path: Path, blocks: list[Block]) -> None:
    """Raise CacheDamaged with the first blocks by name, if there are any."""
    if blocks:
        shown = ", ".join(map(block_name, blocks[:5]))
        more = f" and {len(blocks) - 5} more" if len(blocks) > 5 else ""
        places = f"{len(blocks)} block{'s' if len(blocks) > 1 else ''}"
        raise CacheDamaged(
            f"{path} is damaged in {places}: {shown}{more}. Pull or copy it again, or rebuild it with "
            f"`softlabel cache build DATA -o OTHER.h5`"
        )


def block_name(block: Block) -> str:
    """ "logits/0 rows 512-1023"."""
    name, first, last = block
    return f"{name} {first}-{last}" if name == UNUSED else f"{name} rows {first}-{last}"


def _spans(inspected: Inspected, name: str) -> Iterator[tuple[int, int]]:
    """(first block, stop block) of pieces of about a megabyte."""
    n_blocks = len(inspected.small[f"crc32/{name}"])
    spec = inspected.extents[name].spec
    step = max(1, _SPAN_BYTES * spec.shape[0] // (spec.n_bytes * CRC_ENTRIES))
    for start in range(0, n_blocks, step):
        yield start, min(start + step, n_blocks)


def _damaged(inspected: Inspected, piece: Piece, name: str, start: int, stop: int) -> list[Block]:
    """The damaged ones of the blocks start..stop of one object."""
    spec, offset = inspected.extents[name]
    n_rows = spec.shape[0]
    block_bytes = spec.n_bytes // n_rows * CRC_ENTRIES
    span = piece(offset + start * block_bytes, min(stop * block_bytes, spec.n_bytes) - start * block_bytes)
    crcs = [zlib.crc32(span[at : at + block_bytes]) for at in range(0, len(span), block_bytes)]
    bad = np.flatnonzero(np.array(crcs, "<u4") != inspected.small[f"crc32/{name}"][start:stop]) + start
    return [(name, first, min(first + CRC_ENTRIES, n_rows) - 1) for first in (bad * CRC_ENTRIES).tolist()]


def _used_holes(inspected: Inspected, piece: Piece) -> list[Block]:
    """The stretches that the file format leaves empty and that are not; [] where another writer laid the file out."""
    empty = holes(inspected.extents, inspected.file_bytes, piece)
    return [
        (UNUSED, at, min(at + _SPAN_BYTES, stop) - 1)
        for start, stop in empty
        for at in range(start, stop, _SPAN_BYTES)
        if bytes(piece(at, min(_SPAN_BYTES, stop - at))).strip(b"\0")
    ]
