"""Rows that were sealed are never lost: not with what was set aside, came in, vanished or was swapped meanwhile."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from cache import CacheReader, SegmentedWriter, durable, merge
from cache.errors import CacheBusy, CacheError, CacheMismatch, CacheNewer
from cache.fill import NewFile
from cache.workspace import Workspace


def open_writer(out, manifest, segment_rows=4):
    return SegmentedWriter(out, manifest, {"batch": 8}, segment_rows=segment_rows)


def interrupted(out, make, adds):
    """A run that Ctrl-C ends after these rows; its sealed segments."""

    def run():
        with open_writer(out, make.manifest()) as writer:
            make.add_missing(writer, adds)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    return segments(out)


def built(out, make, adds):
    with open_writer(out, make.manifest()) as writer:
        make.add_missing(writer, adds)
        return writer.finish()


def segments(out):
    return sorted(Path(f"{out}.parts").glob("*.h5"))


def damaged(out):
    return sorted(Path(f"{out}.parts").glob("*.damaged"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "t.h5"


@pytest.fixture
def rows(make):
    return make.table(n_samples=8)


@pytest.fixture
def adds(make, rows):
    return make.rows_one_by_one(rows)


@pytest.fixture
def one_damaged(make, out, adds):
    """Two segments of a killed build, with a damaged row in the one of the first four rows; how that is found."""
    interrupted(out, make, adds[:8])
    (part,) = [
        path for path in segments(out) if (adds[0]["key"], int(adds[0]["views"][0])) in CacheReader(path).pairs()
    ]
    make.flip(part, part, make.offsets(part)["logits/0"][0], 2)


@pytest.mark.usefixtures("one_damaged")
def test_a_damaged_segment_stays_until_all_its_rows_were_computed_again(make, out, rows, adds, tmp_path, caplog):
    for adds_of_a_build, n_missing in ((adds[4:], 4), (adds[1:], 1)):
        caplog.clear()
        built(out, make, adds_of_a_build)
        assert len(damaged(out)) == 1
        assert os.listdir(tmp_path / "t.h5.parts") == [damaged(out)[0].name]
        assert f"{damaged(out)[0]} stays: {n_missing} of its 4 rows are not in {out}" in caplog.text
    make.assert_equal(built(out, make, adds).table(), rows)
    assert os.listdir(tmp_path) == ["t.h5"]


@pytest.mark.usefixtures("one_damaged")
def test_a_segment_too_damaged_to_tell_its_rows_stays_and_hinders_nobody(make, out, rows, adds, tmp_path, caplog):
    for path in segments(out):
        path.write_bytes(path.read_bytes()[:-100])
    for _ in range(2):
        caplog.clear()
        make.assert_equal(built(out, make, adds).table(), rows)
        assert caplog.text.count("too damaged to tell which rows it held") == 2
    assert not Workspace(out).has_work()
    assert sorted(os.listdir(tmp_path / "t.h5.parts")) == [path.name for path in damaged(out)]


@pytest.mark.usefixtures("one_damaged")
def test_a_damaged_segment_binds_no_build_of_another_recipe_and_outlives_it(make, out, adds):
    built(out, make, adds[4:])
    out.unlink()
    with SegmentedWriter(out, make.manifest(precision="bf16"), {"batch": 32}) as writer:
        assert writer.compute_setting == {"batch": 32}
        make.add_missing(writer, adds)
        writer.finish()
    assert len(damaged(out)) == 1


@pytest.mark.parametrize("n_before", [4, 8])
def test_a_segment_that_came_in_during_the_build_waits_for_the_next(make, out, rows, adds, tmp_path, caplog, n_before):
    (theirs,) = interrupted(tmp_path / "mate.h5", make, adds[8:12])
    built(out, make, adds[:n_before])
    caplog.set_level("INFO")
    with open_writer(out, make.manifest()) as writer:
        assert make.add_missing(writer, adds[:8]) == 8 - n_before
        shutil.copy(theirs, writer.parts)
        assert writer.finish().n_rows == 8
    assert [path.name for path in segments(out)] == [theirs.name]
    assert f"t.h5.parts stays: Directory not empty ({theirs.name})" in caplog.text
    with open_writer(out, make.manifest()) as writer:
        assert make.add_missing(writer, adds) == len(adds) - 12
        make.assert_equal(writer.finish().table(), rows)
    assert segments(out) == []


@pytest.mark.parametrize("n_left", [0, 1, 2])
def test_sealed_segments_that_vanish_during_the_build_are_missed(make, out, rows, adds, n_left):
    with open_writer(out, make.manifest()) as writer:
        make.add_missing(writer, adds[:12])
        assert len(segments(out)) == 3
        for path in segments(out)[n_left:]:
            path.unlink()
        with pytest.raises(CacheMismatch, match=f"{12 - 4 * n_left} rows .* vanished .* run the same command again"):
            writer.finish()
        assert len(segments(out)) == n_left
    make.assert_equal(built(out, make, adds).table(), rows)


def test_rows_of_the_output_that_vanish_during_the_build_are_missed(make, out, rows, adds, tmp_path):
    built(tmp_path / "smaller.h5", make, adds[:3])
    built(out, make, adds[:8])
    with open_writer(out, make.manifest()) as writer:
        make.add_missing(writer, adds[:12])
        (tmp_path / "smaller.h5").rename(out)
        with pytest.raises(CacheMismatch, match="5 rows that were sealed vanished"):
            writer.finish()
        assert len(segments(out)) == 1
    make.assert_equal(built(out, make, adds).table(), rows)


def test_an_output_that_is_replaced_during_the_merge_is_left_alone(make, out, rows, adds, tmp_path, monkeypatch):
    built(out, make, adds[:4])
    theirs = built(tmp_path / "newer.h5", make, adds[:8])
    seal = NewFile.seal
    with open_writer(out, make.manifest()) as writer:
        make.add_missing(writer, adds[8:])
        writer.seal()

        def replaced_meanwhile(new, manifest):
            seal(new, manifest)
            theirs.path.rename(out)

        monkeypatch.setattr(NewFile, "seal", replaced_meanwhile)
        with pytest.raises(CacheMismatch, match="replaced during the merge and was left alone"):
            writer.finish()
        monkeypatch.undo()
    assert CacheReader(out).seal == theirs.seal
    with open_writer(out, make.manifest()) as writer:
        assert make.add_missing(writer, adds) == 0
        make.assert_equal(writer.finish().table(), rows)


def flipped_identity(plan):
    return plan.replace(b'"fp32"', b'"fp33"')


@pytest.mark.parametrize(
    "spoil", [lambda _: b"", lambda _: b"[]", lambda _: b'{"format":1}', lambda _: b"\0" * 9, flipped_identity]
)
def test_a_damaged_plan_is_written_anew(make, out, rows, adds, caplog, spoil):
    interrupted(out, make, adds[:8])
    plan = out.with_name("t.h5.parts") / "plan.json"
    sound = plan.read_bytes()
    assert spoil(sound) != sound
    plan.write_bytes(spoil(sound))
    with open_writer(out, make.manifest()) as writer:
        assert plan.read_bytes() == sound
        assert len(writer.done) == 8
        make.add_missing(writer, adds)
        make.assert_equal(writer.finish().table(), rows)
    assert "plan.json is damaged" in caplog.text


def test_a_plan_of_a_later_format_is_refused_untouched(make, out, adds):
    parts = interrupted(out, make, adds[:8])
    plan = out.with_name("t.h5.parts") / "plan.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"format": 2}))
    before = plan.read_bytes()
    with pytest.raises(CacheNewer, match=r"plan\.json: it has format 2.* update softlabel"):  # noqa: SIM117
        with open_writer(out, make.manifest()):
            pass
    assert plan.read_bytes() == before
    assert segments(out) == parts


def test_a_folder_that_cannot_be_swept_is_told_and_not_kept_locked(make, out):
    stuck = out.with_name("t.h5.parts") / "x.tmp"
    stuck.mkdir(parents=True)
    with pytest.raises(CacheError, match=r"cannot remove .*x\.tmp") as kept, open_writer(out, make.manifest()):
        pass
    stuck.rmdir()
    with open_writer(out, make.manifest()) as writer:
        assert writer.parts.exists(), kept


def test_hidden_files_are_no_segments(make, out, rows, adds):
    part = interrupted(out, make, adds[:8])[0]
    beside = part.with_name(f"._{part.name}")
    beside.write_text("what a Mac lays beside each file")
    make.assert_equal(built(out, make, adds).table(), rows)
    assert os.listdir(beside.parent) == [beside.name]


def is_open(path):
    return any(os.path.samestat(os.fstat(fd), os.stat(path)) for fd in durable._held_fds)


def test_the_folder_goes_also_where_an_open_file_cannot_be_removed(make, out, rows, tmp_path, monkeypatch):
    remove, refused = durable.remove, []

    def remove_closed(path):  # as Windows does
        if os.path.exists(path) and is_open(path):
            refused.append(path.name)
            raise PermissionError(errno.EACCES, "used by another process", str(path))
        remove(path)

    monkeypatch.setattr(durable, "remove", remove_closed)
    make.assert_equal(make.build(out, rows).table(), rows)
    assert refused == ["lock"]
    assert os.listdir(tmp_path) == ["t.h5"]


def test_the_folder_goes_also_where_a_removed_file_leaves_a_name_until_it_is_closed(
    make, out, rows, tmp_path, monkeypatch
):
    remove, release, hidden = durable.remove, durable.Lock.release, []

    def rename_open(path):  # as NFS does
        if os.path.exists(path) and is_open(path):
            hidden.append(path.rename(path.with_name(".nfs0001")))
        else:
            remove(path)

    def remove_hidden(lock):
        release(lock)
        for path in hidden:
            path.unlink(missing_ok=True)

    monkeypatch.setattr(durable, "remove", rename_open)
    monkeypatch.setattr(durable.Lock, "release", remove_hidden)
    make.assert_equal(make.build(out, rows).table(), rows)
    assert len(hidden) == 1
    assert os.listdir(tmp_path) == ["t.h5"]


def test_the_next_holders_lock_survives_a_folder_that_stays(make, out, monkeypatch):
    release, held = durable.Lock.release, []

    def next_one_enters(lock):
        release(lock)
        if not held:
            held.append(durable.Lock.acquire(lock.path))

    with open_writer(out, make.manifest()) as writer:
        (writer.parts / "notes.txt").write_text("mine")
        monkeypatch.setattr(durable.Lock, "release", next_one_enters)
    with pytest.raises(CacheBusy), open_writer(out, make.manifest()):
        pass
    held[0].release()


def test_a_symbolic_link_shares_the_lock_of_its_target_and_stays_a_link(make, rows, adds, tmp_path):
    target, link = tmp_path / "disk" / "t.h5", tmp_path / "here.h5"
    target.parent.mkdir()
    link.symlink_to(target)
    with open_writer(target, make.manifest()), pytest.raises(CacheBusy), open_writer(link, make.manifest()):
        pass
    for some in (adds[:4], adds):
        built(link, make, some)
        assert link.is_symlink()
        assert CacheReader(target).n_rows == len(some)
    make.assert_equal(CacheReader(target).table(), rows)
    with pytest.raises(CacheMismatch, match="exists already"):
        merge([target], link)
    target.rename(tmp_path / "source.h5")
    assert merge([tmp_path / "source.h5"], link).path == target
    assert sorted(os.listdir(tmp_path)) == ["disk", "here.h5", "source.h5"]
    assert os.listdir(target.parent) == ["t.h5"]


def test_the_names_of_an_output_are_not_dropped_in_silence(make, out, adds, caplog):
    built(out, make, adds[:4])
    assert built(out, make, [add | {"name": None} for add in adds]).names is None
    assert "t.h5 stores no names" in caplog.text
    caplog.clear()
    assert built(out, make, [*adds, *make.rows_one_by_one(make.table(seed=1))]).names is None
    assert f"{out} has no names of images, so it stores none of the new ones; a cache with names: " in caplog.text
