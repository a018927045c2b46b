"""Rows of other caches become sealed segments of a build: those that are wanted, whole and verified, or none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import CacheReader, Manifest, SegmentedWriter, Table, layout
from cache.errors import CacheDamaged, CacheDiskFull, CacheMismatch, CacheNotFound
from cache.rows import Pair


@pytest.fixture
def table(make: ModuleType) -> Table:
    """Nine samples."""
    rows: Table = make.table(n_samples=9)
    return rows


@pytest.fixture
def old(make: ModuleType, table: Table, tmp_path: Path) -> Path:
    """A cache of it."""
    listed = {"skipped": [{"key": "ab" * 16, "reason": "cut"}], "merged_from": 3, "compute": {"batch": 4}}
    path: Path = make.write(tmp_path / "old.h5", table, Manifest(make.manifest().identity, listed))
    return path


def every_pair(path: Path) -> set[Pair]:
    return CacheReader(path).pairs()


def writer_of(make: ModuleType, out: Path, **options: int) -> SegmentedWriter:
    return SegmentedWriter(out, make.manifest(), {"batch": 8}, **options)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_taken_over_is_the_same_cache(make: ModuleType, old: Path, table: Table, tmp_path: Path) -> None:
    before = old.read_bytes()
    with writer_of(make, tmp_path / "t.h5") as writer:
        assert writer.adopt(old, every_pair(old)) == len(table.view)
        assert writer.done == every_pair(old)
        assert not writer.has_computed
        assert writer.last_provenance() == {"compute": {"batch": 4}}
        assert writer.adopt(old, every_pair(old)) == 0
        made = writer.finish()
    make.assert_equal(made.table(), table)
    assert made.content_id == CacheReader(old).content_id
    assert made.manifest.provenance == {"compute": {"batch": 4}}
    assert old.read_bytes() == before
    assert left(tmp_path) == ["old.h5", "t.h5"]


@settings(max_examples=8, deadline=None, database=None)
@given(seed=st.integers(0, 2**32 - 1), stretch_bytes=st.sampled_from([1, 200, 8 << 20]))
def test_rows_taken_from_two_caches_and_the_others_added_make_the_whole(
    make: ModuleType, tmp_path_factory: pytest.TempPathFactory, seed: int, stretch_bytes: int
) -> None:
    folder, generator = tmp_path_factory.mktemp("whole"), np.random.default_rng(seed)
    whole = make.table(seed=seed, n_samples=5)
    owner = generator.integers(0, 4, len(whole.view))
    chosen = [np.flatnonzero(owner & bit) for bit in (1, 2)]
    olds = [make.write(folder / f"{at}.h5", make.of_rows(whole, rows)) for at, rows in enumerate(chosen) if len(rows)]
    wanted = {
        (bytes(whole.key[at]), int(view))
        for at in range(len(whole.key)) for view in whole.view[int(whole.first_row[at]) : int(whole.first_row[at + 1])]
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_STRETCH_BYTES", stretch_bytes)
        with writer_of(make, folder / "t.h5", segment_rows=3) as writer:
            n_taken = sum(writer.adopt(old, wanted) for old in olds)
            assert n_taken == int((owner > 0).sum())
            n_added = make.add_missing(writer, make.rows_one_by_one(whole))
            assert n_added == int((owner == 0).sum())
            made = writer.finish()
    make.assert_equal(made.table(), whole)


def test_only_what_is_wanted_and_neither_done_nor_buffered_is_taken(
    make: ModuleType, old: Path, table: Table, tmp_path: Path
) -> None:
    adds = make.rows_one_by_one(table)
    with writer_of(make, tmp_path / "t.h5") as writer:
        writer.add(**adds[0])
        writer.seal()
        writer.add(**adds[1])
        first = {(add["key"], int(add["views"][0])) for add in adds[:4]}
        assert writer.adopt(old, [*first, (bytes(16), 3), (b"\xff" * 16, 0)]) == 2
        assert writer.has_computed
        make.assert_equal(writer.finish().table(), make.of_rows(table, range(4)))


@pytest.mark.parametrize("stored", [True, False])
def test_names_are_those_that_are_given_for_all_or_none(
    stored: bool, make: ModuleType, table: Table, tmp_path: Path
) -> None:
    old = make.write(tmp_path / "old.h5", Table(**{**vars(table), "names": table.names if stored else None}))
    ours = {bytes(key): f"ours {number}" for number, key in enumerate(table.key)}
    for number, (names, expected) in enumerate([
        (None, table.names if stored else None), (ours, list(ours.values())), ({}, None),
        (dict(list(ours.items())[1:]), None),
    ]):  # fmt: skip
        with writer_of(make, tmp_path / f"{number}.h5") as writer:
            writer.adopt(old, every_pair(old), names=names)
            assert writer.finish().names == expected


def test_what_cannot_become_rows_of_the_output_is_refused_and_nothing_is_taken(
    make: ModuleType, old: Path, table: Table, tmp_path: Path
) -> None:
    out = make.write(tmp_path / "t.h5", make.part(table, [0]))
    other = make.write(tmp_path / "other.h5", table, make.manifest(precision="bf16", teacher={"weights": "1"}))
    bare = make.write(tmp_path / "bare.h5", Table(**{**vars(table), "features": {}}))
    link, damaged, broken = tmp_path / "link.h5", tmp_path / "damaged.h5", tmp_path / "broken.h5"
    link.symlink_to(out)
    make.flip(old, damaged, make.offsets(old)["logits/1"][0], 3)
    broken.write_bytes(old.read_bytes()[:-1])
    before = left(tmp_path)
    with writer_of(make, out) as writer:
        pairs = every_pair(old)
        for source, error, said in (
            (
                other,
                CacheMismatch,
                r"other\.h5 is of another recipe, with another --precision .*\n  precision: .*\n  teacher\.scale: ",
            ),
            (bare, CacheMismatch, r"bare\.h5 has no embeddings, the rows before it have embeddings \("),
            (
                damaged,
                CacheDamaged,
                r"damaged\.h5 is damaged in 1 block: logits/1 rows .*cache repair",
            ),
            (broken, CacheDamaged, r"broken\.h5 is not a sound cache"),
            (tmp_path / "none.h5", CacheNotFound, "no cache at"),
            (out, CacheMismatch, r"t\.h5 is the output itself"),
            (link, CacheMismatch, r"link\.h5 is the output itself"),
        ):
            with pytest.raises(error, match=said):
                writer.adopt(source, pairs)
            assert writer.done == every_pair(out)
            assert left(writer.parts) == ["lock", "plan.json"]
        assert writer.adopt(old, pairs) == len(table.view) - int(table.first_row[1])
        make.assert_equal(writer.finish().table(), table)
    assert left(tmp_path) == before


def test_numbers_that_are_not_finite_are_refused(make: ModuleType, table: Table, tmp_path: Path) -> None:
    old = tmp_path / "old.h5"
    make.write(old, table)
    content = bytearray(old.read_bytes())
    at = make.offsets(old)["logits/0"][0]
    content[at : at + 4] = np.float32(np.inf).tobytes()
    old.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CacheReader, "damaged_blocks", lambda self: [])  # as if the CRCs fitted such numbers
        with writer_of(make, tmp_path / "t.h5") as writer, pytest.raises(CacheDamaged, match="logits/0 is not finite"):
            writer.adopt(old, every_pair(old))


def test_a_full_disk_leaves_nothing_and_the_same_call_goes_on(
    make: ModuleType, table: Table, old: Path, tmp_path: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    with writer_of(make, tmp_path / "t.h5") as writer:
        with file_limit(3000), pytest.raises(CacheDiskFull, match=r"no room for [\d,]{5,} bytes"):
            writer.adopt(old, every_pair(old))
        assert left(writer.parts) == ["lock", "plan.json"]
        writer.adopt(old, every_pair(old))
        make.assert_equal(writer.finish().table(), table)


def test_the_plan_binds_to_computed_rows_alone(make: ModuleType, old: Path, tmp_path: Path) -> None:
    """A batch that is too large for the device may be halved although rows were taken over."""
    for batch in (8, 4):
        with SegmentedWriter(tmp_path / "t.h5", make.manifest(), {"batch": batch}) as writer:
            assert writer.compute_setting == {"batch": batch}
            writer.adopt(old, every_pair(old))
    assert writer.done == every_pair(old)


KILLED = """
import os, signal, sys
from pathlib import Path
from cache import CacheReader, SegmentedWriter, durable

out, old, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def kill(*args):
    os.kill(os.getpid(), signal.SIGKILL)
before = {"before": True, "after": False}[step.split()[0]]
name = step.split()[1]
function = getattr(durable, name)
def killed(*args):
    if before:
        kill()
    function(*args)
    kill()
with SegmentedWriter(out, CacheReader(old).manifest, {}) as writer:
    setattr(durable, name, killed)
    writer.adopt(old, CacheReader(old).pairs())
"""


@pytest.mark.parametrize("step", ["after allocate", "before publish_new", "after publish_new"])
def test_a_killed_copy_leaves_a_segment_or_nothing(
    step: str, make: ModuleType, table: Table, old: Path, tmp_path: Path
) -> None:
    out = tmp_path / "t.h5"
    done = subprocess.run([sys.executable, "-c", KILLED, out, old, step], check=False)
    assert done.returncode == -9
    with writer_of(make, out) as writer:
        n_there = len(table.view) if step == "after publish_new" else 0
        assert len(writer.done) == n_there
        assert writer.adopt(old, every_pair(old)) == len(table.view) - n_there
        make.assert_equal(writer.finish().table(), table)
    assert left(tmp_path) == ["old.h5", "t.h5"]
