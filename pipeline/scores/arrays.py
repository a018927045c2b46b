"""Read the arrays of an NPZ file of scores: bounded before anything is unpacked, and without pickles.

Knows how the arrays must look, not what may stand in them (`pipeline.scores.table`). Run: see `pipeline.scores.table`.
N rows, C classes.
"""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.errors import did_you_mean, first_line

Arrays = dict[str, NDArray[Any]]

_KINDS = {"image": "U", "classes": "U", "scores": "fiu", "view": "iu"}
_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# What zipfile, its decompressors and NumPy's reader raise for damage; a header goes through Python's own parser.
_DAMAGE = (
    OSError, ValueError, EOFError, RuntimeError, LookupError, TypeError, OverflowError, SyntaxError, MemoryError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, tokenize.TokenError,
)  # fmt: skip


class _Refused(ValueError):
    """Said in our own words already."""


def read_arrays(path: Path, max_bytes: int) -> Arrays:
    """`image` text [N], `classes` text [C], `scores` [N, C] and, where it is there, integer `view` [N].

    ValueError for anything else: damage, entries that claim more than `max_bytes`, other names, types or shapes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, max_bytes)
            arrays = {name: _read(archive, info, name) for name, info in members.items()}
    except _Refused:
        raise
    except _DAMAGE as error:
        raise ValueError(f"it is no NPZ file, or a damaged one ({first_line(error)}): write it anew") from error
    n_rows, n_classes = len(arrays["image"]), len(arrays["classes"])
    expected = {"image": (n_rows,), "classes": (n_classes,), "scores": (n_rows, n_classes), "view": (n_rows,)}
    if wrong := [f"{name} {values.shape}" for name, values in arrays.items() if values.shape != expected[name]]:
        raise ValueError(
            f"its arrays do not fit together: {', '.join(wrong)}; with {n_rows:,} images and {n_classes:,} classes, "
            f"expected scores {expected['scores']} and view {expected['view']}"
        )
    return arrays


def _members(archive: zipfile.ZipFile, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The entry of each array, all of them known, once and small enough together."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name not in _KINDS or name in found:
            known = f"expected image, classes, scores and view{did_you_mean(name, _KINDS)}"
            raise _Refused(f"it has {'a second' if name in found else 'an'} array '{name}', {known}")
        found[name] = info
    if missing := [name for name in ("image", "classes", "scores") if name not in found]:
        raise _Refused(f"it has no array {', '.join(missing)}; expected image, classes, scores and, at will, view")
    if (claimed := sum(info.file_size for info in found.values())) > max_bytes:
        raise _Refused(f"unpacked it would have {claimed:,} bytes, expected at most {max_bytes:,}: import it in pieces")
    return found


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> NDArray[Any]:
    """One array; its header is believed only where it fits the entry's size, as NumPy allocates by the header."""
    with archive.open(info) as stream:
        shape, dtype = _header(stream)
        n_left = info.file_size - stream.tell()
    if dtype.hasobject:
        raise _Refused(f"`{name}` holds Python objects (a pickle): save np.array(..., dtype={_wanted_type(name)})")
    if dtype.kind not in _KINDS[name]:
        raise _Refused(f"`{name}` is {dtype}, expected an array of {_wanted_type(name)}")
    if math.prod(shape) * dtype.itemsize != n_left or not dtype.itemsize:
        raise ValueError(f"the header of {name} promises {dtype} {shape}, and {n_left:,} bytes follow")
    with archive.open(info) as stream:
        values: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return values


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version not in _HEADER_READERS:
        raise ValueError(f"format {version} of .npy")
    shape, _, dtype = _HEADER_READERS[version](stream)
    return shape, dtype


def _wanted_type(name: str) -> str:
    return {"U": "str", "fiu": "float", "iu": "int"}[_KINDS[name]]
