"""What several tests of the stages do to a build, a cache file or a disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from cache import CacheReader, Manifest, Table
from cache.fill import write_table
from pipeline.teachers.siglip import SiglipTeacher

Rows = dict[tuple[str, int], bytes]


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`stop_at(n, error)`: from now on the teacher's n-th forward pass raises `error`, once."""
    embed = SiglipTeacher.embed

    def stop_at(n_passes: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        passes = 0

        def stopping(self: SiglipTeacher, pixels: torch.Tensor) -> np.ndarray:
            nonlocal passes
            passes += 1
            if passes == n_passes:
                raise error
            return embed(self, pixels)

        monkeypatch.setattr(SiglipTeacher, "embed", stopping)

    return stop_at


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], Rows]:
    """Every bit of every row of a cache: (key in hex, view) -> params, witness, logits and features."""

    def rows_of(path: Path) -> Rows:
        with CacheReader(path) as reader:
            table = reader.table()
        keys = np.repeat(table.key, np.diff(table.first_row.astype(int)), axis=0)
        arrays = [table.params, table.witness, *table.logits.values(), *table.features.values()]
        return {
            (key.tobytes().hex(), int(view)): b"".join(array[row].tobytes() for array in arrays)
            for row, (key, view) in enumerate(zip(keys, table.view, strict=True))
        }

    return rows_of


@pytest.fixture
def resealed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a cache with other rows, identity or provenance, and a seal that fits them."""

    def resealed(
        source: Path,
        change: Callable[[Table], Table | None] | None = None,
        *,
        identity: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
        name: str = "resealed.h5",
    ) -> Path:
        with CacheReader(source) as reader:
            table, stored = reader.table(), reader.manifest
        changed = change(table) if change else None
        manifest = Manifest({**stored.identity, **(identity or {})}, {**stored.provenance, **(provenance or {})})
        write_table(tmp_path / name, manifest, changed or table)
        return tmp_path / name

    return resealed


@pytest.fixture(scope="session")
def without_row() -> Callable[[Table, int], Table]:
    """A table without one row of a sample that has others."""

    def without_row(table: Table, row: int) -> Table:
        def rest(values: np.ndarray) -> np.ndarray:
            return np.delete(values, row, axis=0)

        return dataclasses.replace(
            table,
            first_row=table.first_row - (table.first_row > row).astype("<u8"),
            view=rest(table.view),
            params=rest(table.params),
            witness=rest(table.witness),
            logits={task: rest(values) for task, values in table.logits.items()},
            features={name: rest(values) for name, values in table.features.items()},
        )

    return without_row


@pytest.fixture
def flipped(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a cache with one bit of one object flipped."""

    def flipped(source: Path, name: str, byte: int = 0) -> Path:
        with h5py.File(source, "r", locking=False) as h5:
            at = h5[name].id.get_offset() + byte
        content = bytearray(source.read_bytes())
        content[at] ^= 4
        (tmp_path / "flipped.h5").write_bytes(content)
        return tmp_path / "flipped.h5"

    return flipped


@pytest.fixture
def file_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Inside `file_limit(n)` the kernel refuses this process bytes beyond the first n of any file: a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def file_limit(n_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return file_limit
