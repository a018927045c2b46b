"""Refuse numbers that are none, such as NaN: a sealed file may hold them if somebody else made it.

Never repairs them. CRCs and seal (`cache.verify`) say nothing of them. Run: `softlabel cache verify FILE.h5`
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cache.errors import CacheDamaged
from cache.guard import Inspected
from cache.layout import is_big
from cache.verify import Piece

# Of float16 and float32, as integers: all of these bits are set in infinities and NaNs, and in nothing else.
_EXPONENT = {2: ("<u2", 0x7C00), 4: ("<u4", 0x7F800000)}
_PIECE_BYTES = 1 << 20


def refuse_not_finite(path: Path, inspected: Inspected, piece: Piece, objects: Iterable[str] | None = None) -> None:
    """Raise CacheDamaged with the first such row of some big objects, or of all; `piece` as in `cache.verify.sweep`."""
    for name in sorted(filter(is_big, inspected.extents)) if objects is None else objects:
        (dtype, shape), offset = inspected.extents[name]
        if dtype.kind != "f":
            continue
        n_bytes, (integers, exponent) = inspected.extents[name].spec.n_bytes, _EXPONENT[dtype.itemsize]
        for start in range(0, n_bytes, _PIECE_BYTES):
            content = piece(offset + start, min(_PIECE_BYTES, n_bytes - start))
            is_bad = np.frombuffer(content, integers) & np.dtype(integers).type(exponent) == exponent
            if is_bad.any():
                row = (start // dtype.itemsize + int(is_bad.argmax())) // (n_bytes // dtype.itemsize // shape[0])
                raise CacheDamaged(
                    f"{path} is not a sound cache: {name} is not finite in row {row} (a teacher that overflowed, or a "
                    f"file made by hand). Ask its maker, or rebuild it with `softlabel cache build DATA -o OTHER.h5`"
                )
