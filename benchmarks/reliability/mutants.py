"""Files that somebody changed: a sound cache with bytes altered by chance, or with metadata whose checksums fit.

Every file follows from a seed and a number. Asks no code of ours what is in a file. Run: benchmarks/hostile_files.py
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from reliability.mended_metadata import checked_blocks, mend

_HEADER = b"\x89HDF\r\n\x1a\n"
_ODD = (0, 1, 2, 3, 7, 8, 16, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60)
_ODDER = (2**62, 2**63 - 1, 2**63, 2**64 - 9, 2**64 - 2, 2**64 - 1)


@dataclass(frozen=True, eq=False)
class Sound:
    """A sound cache and what there is to change in it."""

    name: str
    content: bytes
    metadata: list[int]
    """Every byte that belongs to no object."""
    blocks: list[tuple[int, int]]
    """Stretches of metadata, each followed by its own checksum; see `lookup3`."""
    addresses: list[int]
    """Where blocks begin: what a changed address may be changed to."""


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """Every object by plain h5py."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(path, "r", locking=False) as h5:
        h5.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def sound(path: Path) -> Sound:
    """A sound file to be changed."""
    content = path.read_bytes()
    is_data = np.zeros(len(content), bool)

    def visit(_: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            start = item.id.get_offset()
            is_data[start : start + item.id.get_storage_size()] = True

    with h5py.File(path, "r", locking=False) as h5:
        h5.visititems(visit)
    metadata = np.flatnonzero(~is_data).tolist()
    blocks = checked_blocks(content)
    others = [at for word in (b"TREE", b"SNOD", b"HEAP", b"FHDB") for at in _all_of(content, word)]
    return Sound(path.stem, content, metadata, blocks, [start for start, _ in blocks] + others)


def _all_of(content: bytes, word: bytes) -> list[int]:
    return [at for at in range(len(content)) if content.startswith(word, at)]


def write_sounds(original: Path, folder: Path) -> list[Sound]:
    """The same rows in the old format, in the new one with attributes, behind a user block, and as ours writes them."""
    arrays = arrays_of(original)
    ways: dict[str, dict[str, object]] = {
        "old": {"libver": "earliest"}, "new": {"libver": "latest"}, "block": {"userblock_size": 512},
    }  # fmt: skip
    for name, options in ways.items():
        with h5py.File(folder / f"{name}.h5", "x", **options) as h5:
            for one, array in arrays.items():
                h5.create_dataset(one, data=array)
            if name == "new":  # so many that they are no part of their header any more
                h5["seal"].attrs.update({f"note {number}": number for number in range(12)})
                for number in range(12):
                    h5.create_group(f"empty/{number}")
    return [sound(original), *(sound(folder / f"{name}.h5") for name in ways)]


def by_chance(rng: random.Random, sounds: list[Sound]) -> bytes:
    """Some bytes, words or stretches flipped, zeroed, inserted, deleted, moved, or taken from another file."""
    content = bytearray(rng.choice(sounds).content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        rng.choice(_BYTE_CHANGES)(rng, content, sounds)
    return bytes(content)


def _stretch(rng: random.Random, content: bytes | bytearray) -> tuple[int, int]:
    start = rng.randrange(max(1, len(content)))
    return start, min(len(content), start + rng.choice((1, 2, 4, 8, 64, 512, 4096)))


def _flip(rng: random.Random, content: bytearray, sounds: list[Sound]) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, content: bytearray, sounds: list[Sound]) -> None:
    start, stop = _stretch(rng, content)
    content[start:stop] = rng.randbytes(stop - start)


def _zero(rng: random.Random, content: bytearray, sounds: list[Sound]) -> None:
    start, stop = _stretch(rng, content)
    content[start:stop] = bytes(stop - start)


def _insert(rng: random.Random, content: bytearray, sounds: list[Sound]) -> None:
    start, stop = _stretch(rng, content)
    content[start:start] = rng.randbytes(stop - start)


def _delete(rng: random.Random, content: bytearray, sounds: list[Sound]) -> None:
    start, stop = _stretch(rng, content)
    del content[start:stop]


def _move(rng: random.Random, content: bytearray, sounds: list[Sound]) -> None:
    start, stop = _stretch(rng, content)
    piece, at = content[start:stop], rng.randrange(len(content) + 1)
    content[at : at + len(piece)] = piece


def _splice(rng: random.Random, content: bytearray, sounds: list[Sound]) -> None:
    other = rng.choice(sounds).content
    start, stop = _stretch(rng, other)
    at = rng.choice((start, rng.randrange(len(content) + 1)))
    content[at : at + stop - start] = other[start:stop]


def _cut(rng: random.Random, content: bytearray, sounds: list[Sound]) -> None:
    del content[rng.randrange(len(content) + 1) :]


def _append(rng: random.Random, content: bytearray, sounds: list[Sound]) -> None:
    content += rng.choice((bytes(100), rng.randbytes(100), rng.choice(sounds).content, _HEADER))


_BYTE_CHANGES: tuple[Callable[[random.Random, bytearray, list[Sound]], None], ...] = (
    _flip, _flip, _overwrite, _zero, _insert, _delete, _move, _splice, _cut, _append,
)  # fmt: skip


def in_metadata(rng: random.Random, sounds: list[Sound]) -> bytes:
    """Sizes, counts, addresses, types and flags in headers, trees and heaps, with checksums that fit afterwards."""
    one = rng.choice(sounds)
    content = bytearray(one.content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if one.blocks and rng.random() < 0.9:
            block = rng.choice(one.blocks)
            # Also in the signature and beside it, but mostly in what follows.
            _edit(rng, content, rng.randrange(block[0] + rng.choice((0, 4, 4, 4, 6)), block[1]), block[1], one)
            mend(content, block)
        else:
            _edit(rng, content, rng.choice(one.metadata), len(content), one)
    return bytes(content)


def _edit(rng: random.Random, content: bytearray, at: int, stop: int, one: Sound) -> None:
    """Another number of 1, 2, 4 or 8 bytes, in the place of the one there."""
    width = min(rng.choice((1, 1, 1, 2, 2, 4, 8, 8)), stop - at)
    old = int.from_bytes(content[at : at + width], "little")
    new = rng.choice(
        (
            old + rng.choice((-8, -2, -1, 1, 2, 8)),
            old ^ (1 << rng.randrange(8 * width)),
            old * 2,
            old << 8,
            rng.choice(_ODD),
            rng.choice(_ODDER),
            rng.getrandbits(8 * width),
            rng.choice(one.addresses),
            rng.randrange(len(content)),
            len(content),
        )
    )
    content[at : at + width] = (new % (1 << 8 * width)).to_bytes(width, "little")
