"""Files that somebody made on purpose: by plain h5py, whatever it can store, with checksums and a seal that fit.

Every file follows from a random generator. Run: benchmarks/hostile_files.py
"""

import hashlib
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from reliability import strange_text

Arrays = dict[str, np.ndarray]
Put = Callable[[random.Random, h5py.File, str, np.ndarray], object]


def fit_seal(arrays: Arrays) -> None:
    """CRC tables and a seal for what the objects are now, as docs/format.md says them."""
    for name in [name for name in arrays if f"crc32/{name}" in arrays]:
        blocks = [arrays[name][start : start + 512] for start in range(0, len(arrays[name]), 512)]
        arrays[f"crc32/{name}"] = np.array([zlib.crc32(block.tobytes()) for block in blocks], "<u4")
    arrays["seal"] = np.frombuffer(seal_of(arrays), "u1")


def seal_of(arrays: Arrays) -> bytes:
    """The seal that belongs to these objects."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        if name != "seal":
            digest.update(f"{name}\0{array.dtype.str}\0{','.join(map(str, array.shape))}\0".encode())
            digest.update(b"" if f"crc32/{name}" in arrays else array.tobytes())
    return digest.digest()


def write(path: Path, arrays: Arrays, odd: dict[str, Callable[[h5py.File], object]], **options: Any) -> None:
    """All objects by plain h5py; those in `odd` are put by their functions, or left to h5py where it cannot."""
    with h5py.File(path, "w", **options) as h5:
        for name, array in arrays.items():
            if name not in odd:
                h5.create_dataset(name, data=array)
        for name, put in odd.items():
            try:
                put(h5)
            except (ValueError, RuntimeError, OSError, TypeError, KeyError):  # libhdf5 does not write everything
                h5.require_group("elsewhere").create_dataset(name, data=arrays[name])


def odd_storage(rng: random.Random, arrays: Arrays, path: Path) -> None:
    """One or two objects stored as caches do not store them."""
    chosen = rng.sample(sorted(arrays), rng.choice((1, 1, 2)))
    odd = {name: _putting(rng, rng.choice(_STORED), name, arrays[name]) for name in chosen}
    write(path, arrays, odd, libver=rng.choice(("earliest", "v108", "latest")))


def odd_content(rng: random.Random, arrays: Arrays, path: Path) -> None:
    """Values and shapes that make no sense, under a seal that fits."""
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(_CONTENTS)(rng, arrays)
    fit_seal(arrays)
    write(path, arrays, {})


def odd_manifest(rng: random.Random, arrays: Arrays, path: Path) -> None:
    """A manifest that is no strict JSON, or is and says strange things, under a seal that fits."""
    arrays["manifest"] = np.frombuffer(strange_text.manifest(rng, arrays["manifest"].tobytes()), "u1")
    fit_seal(arrays)
    write(path, arrays, {})


def _putting(rng: random.Random, put: Put, name: str, array: np.ndarray) -> Callable[[h5py.File], object]:
    return lambda h5: put(rng, h5, name, array)


def _with(**options: Any) -> Put:
    return lambda rng, h5, name, array: h5.create_dataset(name, data=array, **options)


def _chunks(rng: random.Random, h5: h5py.File, name: str, array: np.ndarray) -> None:
    filters: list[dict[str, Any]] = [{"compression": "gzip"}, {"shuffle": True}, {"fletcher32": True}, {}]
    h5.create_dataset(name, data=array, chunks=True, **rng.choice(filters))


def _raw(dtype: Any, shape: tuple[int, ...] = (3,)) -> Put:
    return lambda rng, h5, name, array: h5.create_dataset(name, shape, dtype)


def _nested(rng: random.Random, h5: h5py.File, name: str, array: np.ndarray) -> None:
    kind, of = rng.choice(("vlen", "array", "compound")), h5py.h5t.STD_U8LE.copy()
    for _ in range(rng.choice((1, 3, 30, 300, 2000))):
        if kind == "vlen":
            of = h5py.h5t.vlen_create(of)
        elif kind == "array":
            of = h5py.h5t.array_create(of, (1,))
        else:
            outer = h5py.h5t.create(h5py.h5t.COMPOUND, of.get_size())
            outer.insert(b"a", 0, of)
            of = outer
    _low(h5, name, of, h5py.h5s.create_simple((2,)))


def _low(h5: h5py.File, name: str, of: Any, space: Any) -> None:
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    h5py.h5d.create(h5.id, name.encode(), of, space, lcpl=link)


def _shape(rng: random.Random, h5: h5py.File, name: str, array: np.ndarray) -> None:
    lengths = [rng.choice((1, 2**20, 2**31, 2**60, len(array))) for _ in range(rng.choice((1, 2, 5, 32)))]
    try:
        _low(h5, name, h5py.h5t.py_create(array.dtype), h5py.h5s.create_simple(tuple(lengths)))
    except (ValueError, RuntimeError, OSError):  # libhdf5 does not write what overflows
        h5.create_dataset(name, data=array)


def _external(rng: random.Random, h5: h5py.File, name: str, array: np.ndarray) -> None:
    h5.create_dataset(name, array.shape, array.dtype, external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])


def _virtual(rng: random.Random, h5: h5py.File, name: str, array: np.ndarray) -> None:
    is_open = rng.random() < 0.5
    layout = h5py.VirtualLayout(array.shape, array.dtype, maxshape=(None, *array.shape[1:]) if is_open else None)
    source = h5py.VirtualSource("/dev/zero", name, array.shape, maxshape=(None, *array.shape[1:]) if is_open else None)
    if is_open:
        unlimited = h5py.h5s.UNLIMITED
        layout[:unlimited, ...] = source[:unlimited, ...]
    else:
        layout[...] = source
    h5.create_virtual_dataset(name, layout)


def _link(rng: random.Random, h5: h5py.File, name: str, array: np.ndarray) -> None:
    there = [name for name in ("manifest", "samples", "rows/view", "logits/0", "/") if name in h5]
    to = rng.choice(there)
    h5[name] = rng.choice((h5py.SoftLink(f"/{to}"), h5py.ExternalLink("/dev/zero", "/a"), h5[to], h5["/"]))


def _attributes(rng: random.Random, h5: h5py.File, name: str, array: np.ndarray) -> None:
    h5.create_dataset(name, data=array)
    for number in range(rng.choice((1, 20, 1000))):
        h5[name].attrs[f"note {number}"] = rng.choice(("x", "x" * 60_000 if number < 10 else 1, h5.ref, [1.5] * 9))


def _groups(rng: random.Random, h5: h5py.File, name: str, array: np.ndarray) -> None:
    h5.create_dataset(name, data=array)
    prefix = rng.choice(("a/" * 40, "deep/" * 3, "\x1b[31m/", "rows/\u202e", "n" * 20_000))
    for number in range(rng.choice((1, 200))):
        h5.create_group(f"{prefix}{number}")


def _named_type(rng: random.Random, h5: h5py.File, name: str, array: np.ndarray) -> None:
    h5["type"] = array.dtype
    h5.create_dataset(name, data=array, dtype=h5["type"])


_STORED: tuple[Put, ...] = (
    _chunks, _chunks, _external, _virtual, _link, _link, _attributes, _attributes, _groups, _groups, _named_type,
    _nested, _nested, _shape, _shape, _with(track_times=True), _with(maxshape=None, chunks=None),
    _raw(h5py.string_dtype()), _raw(h5py.ref_dtype), _raw(h5py.regionref_dtype), _raw(np.dtype("V9")), _raw("?"),
    _raw(np.dtype([("a", "u1"), ("b", "f4", (2, 2))])), _raw(h5py.enum_dtype({"a": 1, "b": 2})), _raw("c8"),
    _raw(h5py.vlen_dtype("u1")), _raw(">f4"), _raw("f8"), _raw("u1", ()), _raw("S70000"), _raw("u1", (0,)),
)  # fmt: skip


def _exchange(rng: random.Random, arrays: Arrays) -> None:
    array = arrays[rng.choice(("samples/key", "rows/view", "samples/first_row"))]
    one, other = rng.randrange(len(array)), rng.randrange(len(array))
    array[[one, other]] = array[[other, one]]


def _number(rng: random.Random, arrays: Arrays) -> None:
    array = arrays[rng.choice(("samples/first_row", "rows/view", "samples/key"))].reshape(-1)
    array[rng.randrange(len(array))] = rng.choice((0, 1, 255, 2 ** (8 * array.itemsize) - 1))


def _no_number(rng: random.Random, arrays: Arrays) -> None:
    names = [name for name in arrays if arrays[name].dtype.kind == "f" and not name.startswith("crc32")]
    array = arrays[rng.choice(names)].reshape(-1)
    array[rng.randrange(len(array))] = rng.choice((np.nan, np.inf, -np.inf))


def _names(rng: random.Random, arrays: Arrays) -> None:
    names = arrays["samples/name"].reshape(-1).tolist()
    names[rng.randrange(len(names))] = rng.choice(strange_text.NAMES)
    arrays["samples/name"] = np.array(names)


def _axis(rng: random.Random, arrays: Arrays) -> None:
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    edits = (array[:-1], array[..., None], np.concatenate([array, array]), array.reshape(-1), array[None])
    arrays[name] = np.ascontiguousarray(rng.choice([edit for edit in edits if edit.size]))


_CONTENTS: tuple[Callable[[random.Random, Arrays], None], ...] = (_exchange, _number, _no_number, _names, _axis)
