"""Compare every block of 512 rows with its CRC-32: the slow, complete check, which also warms the page cache.

Never repairs. Run: `softlabel cache build DATA -o t.h5`, which verifies what it resumes.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cache.errors import CacheDamaged
from cache.guard import Inspected, inspect, map_rows, opened
from cache.layout import CRC_ENTRIES, crc_table

Block = tuple[str, int, int]


def damaged_blocks(path: str | Path) -> list[Block]:
    """(object, first entry, last entry) of every block whose bytes are not those that were sealed.

    Raises CacheDamaged when the file's own tables are damaged: then nothing in it can be trusted block by block.
    """
    with opened(Path(path)) as file:
        inspected = inspect(file, Path(path))
        return sweep(inspected, map_rows(file, Path(path), inspected))


def verify(path: str | Path) -> None:
    """Raise CacheDamaged, naming the blocks, unless every byte of every row is what was sealed."""
    refuse_damaged(Path(path), damaged_blocks(path))


def sweep(inspected: Inspected, rows: Mapping[str, np.ndarray]) -> list[Block]:
    """The damaged blocks of a file that is open and mapped."""
    return [block for name in sorted(rows) for block in _damaged(name, rows[name], inspected.small[f"crc32/{name}"])]


def refuse_damaged(path: Path, blocks: list[Block]) -> None:
    """Raise CacheDamaged with the first blocks by name, if there are any."""
    if blocks:
        shown = ", ".join(f"{name} rows {first}-{last}" for name, first, last in blocks[:5])
        more = f" and {len(blocks) - 5} more" if len(blocks) > 5 else ""
        raise CacheDamaged(
            f"{path} is damaged in {len(blocks)} blocks: {shown}{more}. Pull or copy it again, or rebuild it with "
            f"`softlabel cache build DATA -o OTHER.h5`"
        )


def _damaged(name: str, array: np.ndarray, sealed_crcs: np.ndarray) -> list[Block]:
    crcs = crc_table(len(array), lambda start, stop: array[start:stop])
    firsts = np.flatnonzero(crcs != sealed_crcs) * CRC_ENTRIES
    return [(name, first, min(first + CRC_ENTRIES, len(array)) - 1) for first in firsts.tolist()]
