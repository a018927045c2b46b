"""Several processes that compute for one output: one holds it, the others add segments under locks of their own."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from cache import CacheReader, SegmentedWriter
from cache.errors import CacheBusy, CacheMismatch
from cache.manifest import Manifest
from cache.workspace import Workspace


def writer(out, manifest, member=0):
    return SegmentedWriter(out, manifest, {"batch": 8}, segment_rows=4, member=member)


def test_members_seal_rows_that_the_holder_merges(make, tmp_path):
    out, table = tmp_path / "t.h5", make.table(n_samples=8)
    rows = make.rows_one_by_one(table)
    with writer(out, make.manifest()) as first:
        member = writer(out, make.manifest(), 1)
        member.follow(first.terms)
        with member:
            make.add_missing(first, rows[:5])
            make.add_missing(member, rows[5:])
        assert not list(first.parts.glob("lock-of-rank-*"))
        first.seal()
        first.take_up(member.sealed)
        first.finish()
    with CacheReader(out) as reader:
        assert reader.n_rows == len(table.view)
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]


def test_nobody_takes_over_while_a_member_of_a_dead_holder_lives(tmp_path):
    out = tmp_path / "t.h5"
    with contextlib.ExitStack() as living:
        first = Workspace(out)
        first.enter()
        living.enter_context(Workspace(out, 1))
        first._release()  # as the kernel does where it dies
        with pytest.raises(CacheBusy, match="lock-of-rank-1"):
            Workspace(out).enter()
    with Workspace(out):
        pass
    assert not list(tmp_path.iterdir())


def test_a_killed_member_leaves_nothing_in_the_way(tmp_path):
    folder = tmp_path / "t.h5.parts"
    folder.mkdir()
    (folder / "lock-of-rank-3").write_text("host away pid 1\n")
    with Workspace(tmp_path / "t.h5"):
        assert not (folder / "lock-of-rank-3").exists()


def test_a_member_sweeps_nobodys_unfinished_files(tmp_path):
    with Workspace(tmp_path / "t.h5") as first:
        unfinished = first.folder / "a.h5.0123.tmp"
        unfinished.write_bytes(b"half")
        with Workspace(tmp_path / "t.h5", 1):
            assert unfinished.exists()
        assert unfinished.exists()


def test_a_holder_without_work_leaves_no_folder_even_before_its_members(tmp_path):
    first, member = Workspace(tmp_path / "t.h5"), Workspace(tmp_path / "t.h5", 1)
    first.enter()
    member.enter()
    first.leave()
    member.leave()
    assert not list(tmp_path.iterdir())


def test_a_member_with_another_recipe_is_told_which_field(make, tmp_path):
    with writer(tmp_path / "t.h5", make.manifest()) as first:
        terms = first.terms
    identity = {**terms["identity"], "decoder": "another"}
    with pytest.raises(CacheMismatch, match=r"of different recipes.*start all of them with the same command"):
        writer(tmp_path / "t.h5", Manifest(identity, {}), 1).follow(terms)


def test_a_segment_that_is_gone_is_told(make, tmp_path: Path):
    with writer(tmp_path / "t.h5", make.manifest()) as first, pytest.raises(CacheMismatch, match=r"x\.h5 vanished"):
        first.take_up(["x.h5"])
