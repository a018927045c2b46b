"""Compare every block of 512 rows with its CRC-32: the complete check, which also brings the file into memory.

Small blocks are compared some at a time, by the CRC-32 that theirs make together, and one by one where that is another:
a call for each would keep threads waiting for each other. Never repairs and never trusts a file whose own tables are
damaged. Run: `softlabel cache verify FILE.h5`
"""

import os
import shlex
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import CacheDamaged
from cache.guard import Inspected
from cache.layout import CRC_ENTRIES, is_big
from cache.skeleton import holes

Block = tuple[str, int, int]
Piece = Callable[[int, int], memoryview]

UNUSED = "unused bytes"
_SPAN_BYTES = 1 << 22
_MAX_THREADS = 4


@dataclass(frozen=True)
class _Span:
    """Some blocks of one object, about four megabytes."""

    name: str
    start: int
    stop: int
    crc: int | None
    """CRC-32 of all its bytes; unknown for the last span of an object."""


def sweep(inspected: Inspected, piece: Piece, objects: Iterable[str] | None = None) -> list[Block]:
    """The damaged blocks of some big objects; of all of them, and of the unused bytes, when `objects` is None.

    Bytes that belong to no object are expected to be zero, and are called "unused bytes" with their offsets.
    `piece(offset, n_bytes)` gives bytes of the file, valid until its next call in the same thread.
    """
    names = sorted(filter(is_big, inspected.extents)) if objects is None else list(objects)
    spans = [span for name in names for span in _spans(inspected, name)]
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        parts = pool.map(lambda span: _damaged(inspected, piece, span), spans)
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
            f"{path} is damaged in {places}: {shown}{more}. Pull or copy it again, compute these rows again with "
            f"`softlabel cache repair {shlex.quote(str(path))} DATA --teacher T`, or rebuild it with "
            f"`softlabel cache build DATA -o OTHER.h5`"
        )


def block_name(block: Block) -> str:
    """ "logits/0 rows 512-1023"."""
    name, first, last = block
    return f"{name} {first}-{last}" if name == UNUSED else f"{name} rows {first}-{last}"


def joined_crcs(crcs: np.ndarray, block_bytes: int, n_blocks: int) -> np.ndarray:
    """CRC-32 of each `n_blocks` blocks (a power of two; a rest is left out) from those of the blocks, uint32 (M,).

    A CRC is linear over GF(2): n zero bytes behind a block turn its CRC into a fixed matrix times that CRC; the CRC of
    two blocks is the first one's, turned by the length of the second, xor the second one's (zlib's crc32_combine).
    """
    joined, turned = crcs[: len(crcs) // n_blocks * n_blocks], _turned_by(block_bytes)
    while n_blocks > 1:
        joined = _turn(turned, joined[0::2]) ^ joined[1::2]
        turned = _turn(turned, turned)
        n_blocks //= 2
    return joined


def _turned_by(n_bytes: int) -> np.ndarray:
    """The matrix for so many zero bytes: what each of the 32 bits of a CRC turns into, uint32 (32,)."""
    turned = np.uint32(1) << np.arange(32, dtype="<u4")
    power = np.array([zlib.crc32(b"\0", 1 << bit) ^ zlib.crc32(b"\0") for bit in range(32)], "<u4")
    while n_bytes:
        if n_bytes & 1:
            turned = _turn(power, turned)
        power, n_bytes = _turn(power, power), n_bytes >> 1
    return turned


def _turn(turned: np.ndarray, crcs: np.ndarray) -> np.ndarray:
    """A matrix times each CRC."""
    bits = crcs[:, None] >> np.arange(32, dtype="<u4") & 1
    return np.bitwise_xor.reduce(bits * turned, axis=1)


def _spans(inspected: Inspected, name: str) -> Iterator[_Span]:
    crcs, spec = inspected.small[f"crc32/{name}"], inspected.extents[name].spec
    block_bytes = spec.n_bytes // spec.shape[0] * CRC_ENTRIES
    step = 1 << max(0, (_SPAN_BYTES // block_bytes).bit_length() - 1)
    known = joined_crcs(crcs[: spec.shape[0] // CRC_ENTRIES], block_bytes, step).tolist()
    for number, start in enumerate(range(0, len(crcs), step)):
        yield _Span(name, start, min(start + step, len(crcs)), known[number] if number < len(known) else None)


def _damaged(inspected: Inspected, piece: Piece, blocks: _Span) -> list[Block]:
    """The damaged ones of some blocks."""
    spec, offset = inspected.extents[blocks.name]
    n_rows = spec.shape[0]
    block_bytes = spec.n_bytes // n_rows * CRC_ENTRIES
    start = blocks.start * block_bytes
    span = piece(offset + start, min(blocks.stop * block_bytes, spec.n_bytes) - start)
    if zlib.crc32(span) == blocks.crc:
        return []
    crcs = [zlib.crc32(span[at : at + block_bytes]) for at in range(0, len(span), block_bytes)]
    expected = inspected.small[f"crc32/{blocks.name}"][blocks.start : blocks.stop]
    bad = np.flatnonzero(np.array(crcs, "<u4") != expected) + blocks.start
    return [(blocks.name, first, min(first + CRC_ENTRIES, n_rows) - 1) for first in (bad * CRC_ENTRIES).tolist()]


def _used_holes(inspected: Inspected, piece: Piece) -> list[Block]:
    """The stretches that the file format leaves empty and that are not; [] where another writer laid the file out."""
    empty = holes(inspected.extents, inspected.file_bytes, piece)
    return [
        (UNUSED, at, min(at + _SPAN_BYTES, stop) - 1)
        for start, stop in empty
        for at in range(start, stop, _SPAN_BYTES)
        if bytes(piece(at, min(_SPAN_BYTES, stop - at))).strip(b"\0")
    ]
