"""The repaired file takes the place of the damaged one whole, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cache import CacheReader, Table, layout
from cache import mend as module
from cache.errors import CacheDamaged, CacheMismatch
from cache.mend import as_sealed, mend
from cache.verify import Block
from cache.workspace import Workspace

FIRST, LAST = 512, 1023
BLOCK: Block = ("logits/0", FIRST, LAST)


@pytest.fixture
def damaged(make: ModuleType, long_cache: Path, tmp_path: Path) -> Path:
    """Three blocks of rows, one of them with a bit flipped."""
    at, n_bytes = make.offsets(long_cache)["logits/0"]
    row_bytes = n_bytes // CacheReader(long_cache).n_rows
    path: Path = make.flip(long_cache, tmp_path / "t.h5", at + 600 * row_bytes, 5)
    assert CacheReader(path).damaged_blocks() == [BLOCK]
    return path


@pytest.fixture
def right(long_table: Table) -> dict[Block, np.ndarray]:
    """What was sealed there."""
    return {BLOCK: long_table.logits["class"][FIRST : LAST + 1]}


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_right_rows_make_the_file_that_was_sealed(
    damaged: Path, right: dict[Block, np.ndarray], long_cache: Path
) -> None:
    assert as_sealed(damaged, right) == {BLOCK: True}
    with Workspace(damaged) as workspace:
        mend(workspace, right, {"repaired": "no"}).verify()
    assert damaged.read_bytes() == long_cache.read_bytes()
    assert left(damaged.parent) == ["t.h5"]


@pytest.mark.parametrize("stretch_bytes", [1000, 8 << 20])
def test_other_rows_make_another_file_that_says_so(
    stretch_bytes: int, damaged: Path, right: dict[Block, np.ndarray], long_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_STRETCH_BYTES", stretch_bytes)
    others = {BLOCK: right[BLOCK] + np.float32(1e-6)}
    assert as_sealed(damaged, others) == {BLOCK: False}
    with Workspace(damaged) as workspace:
        made = mend(workspace, others, {"repaired": "yes"})
    made.verify()
    before = CacheReader(long_cache)
    assert made.manifest.provenance == {**before.manifest.provenance, "repaired": "yes"}
    assert made.manifest.identity == before.manifest.identity
    one, other = made.table().objects(), before.table().objects()
    assert one["logits/0"][FIRST : LAST + 1].tobytes() == others[BLOCK].tobytes()
    one["logits/0"][FIRST : LAST + 1] = right[BLOCK]
    assert {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in other.items()
    }
    assert made.names == before.names


def test_a_block_that_is_left_out_stops_it(damaged: Path) -> None:
    content = damaged.read_bytes()
    with (
        Workspace(damaged) as workspace,
        pytest.raises(CacheDamaged, match=r"more blocks by now \(logits/0 rows 512-10"),
    ):
        mend(workspace, {}, {})
    assert damaged.read_bytes() == content


def test_a_file_that_took_its_place_meanwhile_is_left_alone(
    damaged: Path, right: dict[Block, np.ndarray], make: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make.write(damaged.with_name("other.h5"), make.table())
    content, write = other.read_bytes(), module._write

    def meanwhile(*arguments: Any) -> None:
        write(*arguments)
        os.replace(other, damaged)

    monkeypatch.setattr(module, "_write", meanwhile)
    with Workspace(damaged) as workspace, pytest.raises(CacheMismatch, match="was replaced during the repair"):
        mend(workspace, right, {})
    assert damaged.read_bytes() == content
    assert left(damaged.parent) == ["t.h5"]


def test_bytes_that_change_while_they_are_copied_are_not_sealed_in(
    damaged: Path, right: dict[Block, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Callable[..., np.ndarray] = CacheReader.read_object
    content = damaged.read_bytes()

    def unsound(self: CacheReader, name: str, rows: object) -> np.ndarray:
        values = read(self, name, rows)
        if name == "rows/witness":
            values[0] ^= 1
        return values

    monkeypatch.setattr(CacheReader, "read_object", unsound)
    with Workspace(damaged) as workspace, pytest.raises(CacheDamaged, match="changed in rows/witness rows 0- while"):
        mend(workspace, right, {})
    assert damaged.read_bytes() == content
    assert left(damaged.parent) == ["t.h5"]


KILLED = """
import os, signal, sys
from pathlib import Path
from cache import CacheReader, durable
from cache.mend import mend
from cache.workspace import Workspace

out, sound, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
when, name = step.split()
function = getattr(durable, name)
def killed(*args):
    if when == "after":
        function(*args)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(durable, name, killed)
rows = CacheReader(sound).read_object("logits/0", slice(512, 1024))
with Workspace(out) as workspace:
    mend(workspace, {("logits/0", 512, 1023): rows}, {})
"""


@pytest.mark.parametrize("step", ["after allocate", "before publish_replace", "after publish_replace"])
def test_a_kill_leaves_the_old_file_or_the_new_one_and_the_next_run_sweeps(
    step: str, damaged: Path, right: dict[Block, np.ndarray], long_cache: Path
) -> None:
    before, after = damaged.read_bytes(), long_cache.read_bytes()
    assert subprocess.run([sys.executable, "-c", KILLED, damaged, long_cache, step], check=False).returncode == -9
    assert damaged.read_bytes() == (after if step == "after publish_replace" else before)
    with Workspace(damaged) as workspace:
        mend(workspace, right, {})
    assert damaged.read_bytes() == after
    assert left(damaged.parent) == ["t.h5"]
