"""How fast is a cache read and checked, and how large is it? Ratios to `.npy` memory maps, zlib.crc32 and the payload.

Made-up rows in a temporary folder that is removed at the end (1.6 GB with the defaults). All files are in the page
cache; each round calls every method once, in an order of its own. Prints Markdown tables.
Run: python benchmarks/cache_speed.py [--rounds 200] [--rows 100000] [--folder DIR]

N samples, R rows = (sample, view), C classes, D embedding.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from cache import CacheReader, Manifest, Table
from cache.fill import write_table
from data.views import COLUMNS

BATCH_ROWS = 256
VIEWS = 8
EMBEDDING = 1152
MIN_ROUNDS, MIN_SWEEPS = 31, 15
ROUNDS_PER_SWEEP = 8
RESAMPLES = 2_000
SIZE_TARGET = 1.03
TASK = "class"

Methods = tuple[Callable[[], Any], ...]
"""Ours, the one it is measured against, and perhaps others."""
Check = Callable[[list[Any]], None]
"""Takes the methods' results; ends the program where they do not fit."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A cache file to make, and which of its objects is gathered from."""

    name: str
    n_rows: int
    n_classes: int
    has_embedding: bool = False
    has_names: bool = True

    @property
    def dtype(self) -> str:
        """Of the object that is gathered from."""
        return "float32" if self.n_classes <= 256 and not self.has_embedding else "float16"

    @property
    def payload_bytes(self) -> int:
        """Logits and embeddings, nothing else."""
        logits_bytes = self.n_classes * (4 if self.n_classes <= 256 else 2)
        return self.n_rows * (logits_bytes + 2 * EMBEDDING * self.has_embedding)


@dataclass(frozen=True)
class Made:
    """That file, and the gathered object's values as a memory map of a `.npy` file."""

    kind: Kind
    path: Path
    reader: CacheReader
    memory_map: NDArray[np.floating]

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.floating]:
        """Rows of the object through the reader."""
        return self.reader.feature(rows, "embedding") if self.kind.has_embedding else self.reader.logits(rows, TASK)


@dataclass(frozen=True)
class Times:
    """Seconds of some methods, round by round."""

    wall_s: NDArray[np.float64]
    """float64 [rounds, methods]."""

    @property
    def median_s(self) -> list[float]:
        """One median a method."""
        return np.median(self.wall_s, axis=0).tolist()

    def ratio(self, upper: int = 0, lower: int = 1) -> str:
        """One method's median over another's, with a bootstrap interval of 95 % over rounds."""
        rounds = len(self.wall_s)
        picks = np.random.default_rng(0).integers(0, rounds, (RESAMPLES, rounds))
        resampled = np.median(self.wall_s[picks], axis=1)
        low, high = np.percentile(resampled[:, upper] / resampled[:, lower], [2.5, 97.5])
        return f"{self.median_s[upper] / self.median_s[lower]:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    options = _options()
    kinds = (
        Kind(name="C = 7 logits", n_rows=8 * options.rows, n_classes=7),
        Kind(name="C = 1000 logits", n_rows=options.rows, n_classes=1000),
        Kind(name=f"D = {EMBEDDING} features (and C = 7)", n_rows=options.rows, n_classes=7, has_embedding=True),
    )
    print(_machine())
    with tempfile.TemporaryDirectory(dir=options.folder, ignore_cleanup_errors=True) as folder:
        made = [_make(Path(folder) / str(number), kind) for number, kind in enumerate(kinds)]
        print(_gather_table(made, options.rounds))
        print(_sweep_table(made, max(MIN_SWEEPS, options.rounds // ROUNDS_PER_SWEEP)))
        print(_size_table(made, Path(folder)))
        for one in made:
            one.reader.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help=f"gathers of each kind, {MIN_ROUNDS} or more")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of a file; 8 times as many at C = 7")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    if options.rounds < MIN_ROUNDS:
        parser.error(f"--rounds is {options.rounds}, expected {MIN_ROUNDS} or more")
    if options.rows < BATCH_ROWS or options.rows % VIEWS:
        parser.error(f"--rows is {options.rows}, expected a multiple of {VIEWS}, {BATCH_ROWS} or more")
    return options


def _machine() -> str:
    hdf5 = ".".join(map(str, h5py.h5.get_libversion()))
    return (
        f"{os.cpu_count()} cores ({platform.system()} {platform.machine()}), Python {platform.python_version()}, "
        f"numpy {np.__version__}, h5py {h5py.__version__} with HDF5 {hdf5}, zlib {zlib.ZLIB_RUNTIME_VERSION}.\n"
    )


def _make(folder: Path, kind: Kind) -> Made:
    """Write the cache and the `.npy` file, and read both once, so that they are in the page cache."""
    folder.mkdir()
    table = _table(kind)
    values = table.features["embedding"] if kind.has_embedding else table.logits[TASK]
    write_table(folder / "t.h5", _manifest(kind), table)
    np.save(folder / "values.npy", values)
    made = Made(kind, folder / "t.h5", CacheReader(folder / "t.h5"), np.load(folder / "values.npy", mmap_mode="r"))
    made.reader.verify()
    _check_equal([made.gather(np.arange(kind.n_rows)), made.memory_map[:]])
    return made


def _table(kind: Kind) -> Table:
    rng = np.random.default_rng(kind.n_classes)
    n_samples = kind.n_rows // VIEWS
    key = np.unique(rng.integers(0, 256, (n_samples, 16), dtype=np.uint8), axis=0)
    names = [f"train/melanoma/ISIC_{24306 + number:07d}.jpg" for number in range(n_samples)]
    return Table(
        key=key,
        first_row=np.arange(0, kind.n_rows + 1, VIEWS, dtype="<u8"),
        view=np.tile(np.arange(VIEWS, dtype="<u2"), n_samples),
        params=rng.random((kind.n_rows, len(COLUMNS)), dtype=np.float32),
        witness=rng.integers(0, 256, (kind.n_rows, 12), dtype=np.uint8),
        logits={TASK: _normal(rng, kind.n_rows, kind.n_classes, "<f4" if kind.n_classes <= 256 else "<f2")},
        features={"embedding": _normal(rng, kind.n_rows, EMBEDDING, "<f2")} if kind.has_embedding else {},
        names=names if kind.has_names else None,
    )


def _normal(rng: np.random.Generator, n_rows: int, width: int, dtype: str) -> NDArray[np.floating]:
    """[R, width], made piece by piece: whole in float32 it would take three times the memory of float16."""
    values = np.empty((n_rows, width), dtype)
    for start in range(0, n_rows, 4096):
        part = values[start : start + 4096]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32) * 5
    return values


def _manifest(kind: Kind) -> Manifest:
    """An identity of the usual size: each class has a name and a prompt."""
    classes = [f"skin condition {number:04d}" for number in range(kind.n_classes)]
    teacher = {"kind": "made up", "weights_sha256": "0" * 64, "prompts": {name: [name] for name in classes}}
    identity = {"tasks": [{"name": TASK, "classes": classes}], "view_columns": list(COLUMNS), "teacher": teacher}
    return Manifest(identity, {"created": "2000-01-01T00:00:00+00:00"})


def _check_equal(results: list[NDArray[np.floating]]) -> None:
    ours, theirs = results
    if ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
        raise SystemExit("the reader and the .npy file gave other rows: the times mean nothing")


def _measure(draw: Callable[[np.random.Generator], list[Methods]], check: Check, rounds: int) -> list[Times]:
    """Every method of every entry once a round, in random order over all of them; results are compared untimed."""
    rng = np.random.default_rng(1)
    wall_s: list[list[list[float]]] = []
    for _ in range(rounds):
        entries = draw(rng)
        calls = [(at, number) for at, methods in enumerate(entries) for number in range(len(methods))]
        results: list[list[Any]] = [[None] * len(methods) for methods in entries]
        taken_s = [[0.0] * len(methods) for methods in entries]
        for at, number in (calls[call] for call in rng.permutation(len(calls))):
            started = time.perf_counter()
            results[at][number] = entries[at][number]()
            taken_s[at][number] = time.perf_counter() - started
        for of_one in results:
            check(of_one)
        wall_s.append(taken_s)
    return [Times(np.array(of_one)) for of_one in zip(*wall_s, strict=True)]


def _gather_table(made: list[Made], rounds: int) -> str:
    def draw(rng: np.random.Generator) -> list[Methods]:
        drawn = [(one, rng.integers(0, one.kind.n_rows, BATCH_ROWS)) for one in made]
        return [(partial(one.gather, rows), partial(one.memory_map.__getitem__, rows)) for one, rows in drawn]

    lines = [
        f"### Gather of {BATCH_ROWS} random rows, page cache warm: medians of {rounds} rounds\n",
        "| rows of | dtype | R | `.npy` memory map, ms | CacheReader, ms | ratio (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for one, times in zip(made, _measure(draw, _check_equal, rounds), strict=True):
        ours_ms, theirs_ms = (f"{median_s * 1e3:.3f}" for median_s in times.median_s)
        kind = one.kind
        lines.append(f"| {kind.name} | {kind.dtype} | {kind.n_rows:,} | {theirs_ms} | {ours_ms} | {times.ratio()} |")
    return "\n".join(lines) + "\n"


def _damaged_blocks(reader: CacheReader) -> list[Any]:
    with reader:
        return reader.damaged_blocks()


def _open_and_verify(path: Path) -> list[Any]:
    return _damaged_blocks(CacheReader(path))


def _check_sound(results: list[Any]) -> None:
    if results[0] or results[2]:
        raise SystemExit(f"a file that was just written is damaged: {(results[0] or results[2])[:3]}")


def _sweep_table(made: list[Made], rounds: int) -> str:
    contents = [one.path.read_bytes() for one in made]

    def draw(rng: np.random.Generator) -> list[Methods]:
        readers = [CacheReader(one.path) for one in made]  # opened, not yet mapped
        return [
            (partial(_damaged_blocks, reader), partial(zlib.crc32, content), partial(_open_and_verify, one.path))
            for one, content, reader in zip(made, contents, readers, strict=True)
        ]

    lines = [
        f"### Verify a whole file, page cache warm: medians of {rounds} rounds\n",
        "| file with | MB | zlib.crc32 in memory, one thread, MB/s | verify, MB/s | speed, of zlib.crc32's (95 %) "
        "| opened and verified, MB/s | speed, of zlib.crc32's (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for one, content, times in zip(made, contents, _measure(draw, _check_sound, rounds), strict=True):
        verify_mb_s, crc_mb_s, whole_mb_s = (f"{len(content) / 1e6 / median_s:,.0f}" for median_s in times.median_s)
        cells = [f"{len(content) / 1e6:.1f}", crc_mb_s, verify_mb_s, times.ratio(1, 0), whole_mb_s, times.ratio(1, 2)]
        lines.append(f"| {one.kind.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _size_table(made: list[Made], folder: Path) -> str:
    """The files of the other tables, and C = 1000 once more without names."""
    sizes = [(one.kind, one.path.stat().st_size) for one in made]
    nameless = replace(made[1].kind, name=f"{made[1].kind.name}, no names", has_names=False)
    write_table(folder / "nameless.h5", _manifest(nameless), _table(nameless))
    sizes.insert(2, (nameless, (folder / "nameless.h5").stat().st_size))
    lines = [
        f"### File size, {VIEWS} views an image; target at C = 1000: {SIZE_TARGET} of the payload\n",
        "| file with | R | bytes | payload bytes | ratio | bytes a view |",
        "|---|---|---|---|---|---|",
    ]
    for kind, n_bytes in sizes:
        payload = kind.payload_bytes
        cells = f"{kind.n_rows:,} | {n_bytes:,} | {payload:,} | {n_bytes / payload:.4f} | {n_bytes / kind.n_rows:,.1f}"
        lines.append(f"| {kind.name} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
