"""Names, dtypes, shapes, checksums and seal of the HDF5 file, and the table it holds in memory.

Never opens a file: `cache.guard` reads, `cache.fill` writes, both by the one list that `Dims.specs` gives.
Run: `softlabel cache info FILE.h5`.

Legend: N samples, R rows = (sample, view), P view columns, C classes.
"""

import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import numpy as np

from cache.errors import CacheDamaged, CacheError, CacheMismatch
from cache.manifest import Manifest, object_header

KEY_BYTES = 16
WITNESS_COLUMNS = 12
CRC_ENTRIES = 512
_CRC_BLOCKS = 8
_STRETCH_BYTES = 8 << 20
_STRETCH_ENTRIES = 1 << 20
# Above this many classes logits are float16 (error <= 0.008 at 16..32): a rule of C alone, so that files concatenate.
MAX_FLOAT32_CLASSES = 256
FEATURE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")


class Spec(NamedTuple):
    """What an object must look like."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Size in bytes, by Python's unbounded integers: a hostile shape cannot overflow it."""
        count = self.dtype.itemsize
        for length in self.shape:
            count *= int(length)
        return count

    def stretches(self, n_entries: int | None = None) -> Iterator[slice]:
        """Slices of so many entries, by default all of the object's, each of about eight megabytes of them."""
        n_entries = self.shape[0] if n_entries is None else n_entries
        step = max(1, _STRETCH_BYTES * self.shape[0] // self.n_bytes)
        return (slice(start, min(start + step, n_entries)) for start in range(0, n_entries, step))

    def __str__(self) -> str:
        return f"{self.dtype.str} {self.shape}"


class Extent(NamedTuple):
    """Where an object's bytes lie in the file."""

    spec: Spec
    offset: int


def is_big(name: str) -> bool:
    """Whether an object has a CRC table (the seal covers the bytes of all others)."""
    return name in ("rows/params", "rows/witness") or name.startswith(("logits/", "features/"))


def logits_dtype(n_classes: int) -> np.dtype:
    """float32 up to 256 classes, float16 above."""
    return np.dtype("<f4" if n_classes <= MAX_FLOAT32_CLASSES else "<f2")


@dataclass(frozen=True, kw_only=True)
class Dims:
    """The sizes from which every object's dtype and shape follow; optional objects have None or no entry."""

    manifest_bytes: int
    n_samples: int
    n_rows: int
    n_params: int
    class_counts: tuple[int, ...]
    features: dict[str, tuple[int, ...]] = field(default_factory=dict)
    name_bytes: int | None = None

    def specs(self) -> dict[str, Spec]:
        """Object name -> dtype and shape, of the whole file."""
        rows = self.n_rows
        found = {
            "manifest": Spec(np.dtype("|u1"), (self.manifest_bytes,)),
            "samples/key": Spec(np.dtype("|u1"), (self.n_samples, KEY_BYTES)),
            "samples/first_row": Spec(np.dtype("<u8"), (self.n_samples + 1,)),
            "rows/view": Spec(np.dtype("<u2"), (rows,)),
            "rows/witness": Spec(np.dtype("|u1"), (rows, WITNESS_COLUMNS)),
            "seal": Spec(np.dtype("|u1"), (32,)),
        }
        if self.n_params:
            found["rows/params"] = Spec(np.dtype("<f4"), (rows, self.n_params))
        if self.name_bytes is not None:
            found["samples/name"] = Spec(np.dtype(f"|S{self.name_bytes}"), (self.n_samples,))
        for index, n_classes in enumerate(self.class_counts):
            found[f"logits/{index}"] = Spec(logits_dtype(n_classes), (rows, n_classes))
        for name, tail in self.features.items():
            found[f"features/{name}"] = Spec(np.dtype("<f2"), (rows, *tail))
        n_blocks = -(-rows // CRC_ENTRIES)
        found |= {f"crc32/{name}": Spec(np.dtype("<u4"), (n_blocks,)) for name in found if is_big(name)}
        return found

    @property
    def n_bytes(self) -> int:
        """Bytes of all objects; the file has some kilobytes more."""
        return sum(spec.n_bytes for spec in self.specs().values())

    @classmethod
    def of(cls, specs: Mapping[str, Spec]) -> "Dims":
        """The sizes that a file's own objects suggest; `specs()` of them must give those objects back."""
        missing = [name for name in ("manifest", "samples/key", "rows/view", "logits/0") if name not in specs]
        if missing:
            raise CacheDamaged(f"no object {', '.join(missing)}")
        logits = sorted((name for name in specs if name.startswith("logits/")), key=lambda name: (len(name), name))
        return cls(
            manifest_bytes=_axis(specs, "manifest", 0),
            n_samples=_axis(specs, "samples/key", 0),
            n_rows=_axis(specs, "rows/view", 0),
            n_params=_axis(specs, "rows/params", 1) if "rows/params" in specs else 0,
            class_counts=tuple(_axis(specs, name, 1) for name in logits),
            features={
                name.removeprefix("features/"): spec.shape[1:]
                for name, spec in specs.items()
                if name.startswith("features/")
            },
            name_bytes=specs["samples/name"].dtype.itemsize if "samples/name" in specs else None,
        )


def _axis(specs: Mapping[str, Spec], name: str, axis: int) -> int:
    if len(specs[name].shape) <= axis:
        raise CacheDamaged(f"{name} is {specs[name]}, expected {axis + 1} or more axes")
    return int(specs[name].shape[axis])


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """Rows in memory, sorted by key, then view; refused when an invariant is broken.

    key uint8 (N,16) sorted and unique; first_row uint64 (N+1,); view uint16 (R,) ascending within a sample;
    params float32 (R,P); witness uint8 (R,12); logits: task -> float32, or float16 above 256 classes, (R,C), finite;
    features: name -> float16 (R,...), finite; names: relative paths for people, or None.
    """

    key: np.ndarray
    first_row: np.ndarray
    view: np.ndarray
    params: np.ndarray
    witness: np.ndarray
    logits: dict[str, np.ndarray]
    features: dict[str, np.ndarray] = field(default_factory=dict)
    names: list[str] | None = None

    def __post_init__(self) -> None:
        if self.key.ndim != 2 or self.params.ndim != 2 or any(values.ndim != 2 for values in self.logits.values()):
            raise CacheMismatch("table: key, params and logits must have two axes")
        if self.names is not None and len(self.names) != len(self.key):
            raise CacheMismatch(f"table: {len(self.names)} names for {len(self.key)} samples")
        if bad := [name for name in self.features if not FEATURE_NAME.fullmatch(name)]:
            raise CacheMismatch(f"table: feature name {bad[0]!r}: use letters, digits and _")
        objects = self.objects()
        expected = self.dims(manifest_bytes=1).specs()
        for name, array in objects.items():
            found = Spec(array.dtype, array.shape)
            if found != expected[name] or not found.n_bytes:
                raise CacheMismatch(f"table: {name} is {found}, expected {expected[name]} without zero lengths")
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                rows = np.unique(np.nonzero(~np.isfinite(array))[0])
                raise CacheMismatch(
                    f"table: {name} is not finite in {len(rows)} of {len(array)} rows (first: {rows[0]})"
                )
        check_order(self.key, self.first_row, self.view, CacheMismatch)

    def dims(self, *, manifest_bytes: int) -> Dims:
        """The sizes of the file that would hold this table."""
        encoded = [encode_name(name) for name in self.names] if self.names is not None else None
        return Dims(
            manifest_bytes=manifest_bytes,
            n_samples=len(self.key),
            n_rows=len(self.view),
            n_params=self.params.shape[1],
            class_counts=tuple(values.shape[1] for values in self.logits.values()),
            features={name: values.shape[1:] for name, values in self.features.items()},
            name_bytes=max(1, *map(len, encoded)) if encoded else None,
        )

    def objects(self) -> dict[str, np.ndarray]:
        """Object name -> array, as in the file; without names, manifest, CRCs and seal."""
        found = {"samples/key": self.key, "samples/first_row": self.first_row, "rows/view": self.view}
        found["rows/witness"] = self.witness
        if self.params.shape[1]:
            found["rows/params"] = self.params
        found |= {f"logits/{index}": values for index, values in enumerate(self.logits.values())}
        return found | {f"features/{name}": values for name, values in self.features.items()}

    def check_against(self, manifest: Manifest) -> None:
        """Refuse a table whose tasks, classes or view columns are not the manifest's, in its order."""
        found = {task: values.shape[1] for task, values in self.logits.items()}
        expected = {task: len(classes) for task, classes in manifest.tasks.items()}
        if list(found.items()) != list(expected.items()):
            raise CacheMismatch(f"table: logits of {found}, the manifest's tasks are {expected}")
        if self.params.shape[1] != len(manifest.view_columns):
            raise CacheMismatch(f"table: {self.params.shape[1]} params, expected {len(manifest.view_columns)}")


def check_order(key: np.ndarray, first_row: np.ndarray, view: np.ndarray, error: type[CacheError]) -> None:
    """Refuse unsorted or repeated keys, samples without rows, and views that do not ascend within their sample."""

    def refuse(what: str) -> NoReturn:
        raise error(what)

    if len(key) == 0 or len(view) == 0:
        refuse("no samples or no rows: an empty cache is not written")
    if not _ascends(sortable(key)):
        refuse("samples/key is not sorted and unique")
    first = first_row.view(np.int64)
    if first[0] != 0 or first[-1] != len(view) or not _ascends(first):
        refuse(f"samples/first_row does not run from 0 to {len(view)} with a row or more a sample")
    # Places where a sample ends and views fall or stay: each of them is the start of the next sample.
    for start in range(0, len(view) - 1, _STRETCH_ENTRIES):
        part = view[start : start + _STRETCH_ENTRIES + 1]
        falls = np.flatnonzero(part[1:] <= part[:-1]) + (start + 1)
        if len(falls) and (first[np.searchsorted(first, falls)] != falls).any():
            refuse("rows/view does not ascend within a sample")


def _ascends(values: np.ndarray) -> bool:
    """Whether each value is larger than the one before; a stretch at a time, as some arrays are half of the memory."""
    stretches = (values[at : at + _STRETCH_ENTRIES + 1] for at in range(0, len(values) - 1, _STRETCH_ENTRIES))
    return all(bool((part[1:] > part[:-1]).all()) for part in stretches)


def sortable(key: np.ndarray) -> np.ndarray:
    """Keys uint8 (N,16) -> (N,) bytes of fixed width, which numpy compares as memcmp does, trailing NULs included."""
    return np.ascontiguousarray(key).view(f"S{KEY_BYTES}").ravel()


def encode_name(name: str) -> bytes:
    """A name for people as bytes; surrogate escapes keep file names that are not UTF-8."""
    encoded = name.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise CacheMismatch(f"name {name!r} holds a NUL byte")
    return encoded


def decode_name(stored: bytes) -> str:
    """A name for people as it was before `encode_name`."""
    return stored.decode("utf-8", "surrogateescape")


def runs(entries: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of each stretch in which `entries` (integers) goes up by one."""
    if len(entries):
        breaks = np.flatnonzero(np.diff(entries) != 1) + 1
        yield from zip([0, *breaks.tolist()], [*breaks.tolist(), len(entries)], strict=True)


def crc_table(n_entries: int, block: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """CRC-32 of each 512 entries, uint32 (blocks,); `block(start, stop)` gives entries, of some blocks at a time."""
    crcs, step = [], CRC_ENTRIES * _CRC_BLOCKS
    for start in range(0, n_entries, step):
        entries = np.ascontiguousarray(block(start, min(start + step, n_entries)))
        crcs += [zlib.crc32(entries[at : at + CRC_ENTRIES].data) for at in range(0, len(entries), CRC_ENTRIES)]
    return np.array(crcs, dtype="<u4")


def seal_of(specs: Mapping[str, Spec], bytes_of: Callable[[str], Iterable[bytes | memoryview]]) -> bytes:
    """sha256, 32 bytes, over every object but the seal in name order: header, then the bytes of those without CRCs.

    The CRC tables stand for the big objects' bytes. Finds accidents; only a hash from a trusted place finds malice.
    """
    digest = hashlib.sha256()
    for name in sorted(specs):
        if name == "seal":
            continue
        digest.update(object_header(name, *specs[name]))
        if not is_big(name):
            for chunk in bytes_of(name):
                digest.update(chunk)
    return digest.digest()
