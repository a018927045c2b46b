import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cache import CacheReader, SegmentedWriter, durable, workspace
from cache.errors import CacheBusy, CacheDamaged, CacheDiskFull, CacheMismatch

KILLED_WRITER = Path(__file__).with_name("killed_writer.py")
# Each named step of a run of 8 samples in segments of 4 rows: the first, a middle and the last moments.
STEPS = [
    ("before write_atomic", 1), ("before allocate", 2), ("before fsync_file", 3), ("before publish_new", 2),
    ("after publish_new", 1), ("after publish_new", 3), ("before publish_new of out", 1),
    ("after publish_new of out", 1), ("before remove", 1), ("after remove", 9),
]  # fmt: skip


def open_writer(out, manifest, **options):
    return SegmentedWriter(out, manifest, {"batch": 8}, **{"segment_rows": 4} | options)


def killed_at(out, step, count):
    command = [sys.executable, str(KILLED_WRITER), str(out), step, str(count)]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def interrupted(out, make, rows, n_adds=9):
    """A run that Ctrl-C ends after some rows."""

    def run():
        with open_writer(out, make.manifest()) as writer:
            make.add_missing(writer, make.rows_one_by_one(rows)[:n_adds])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()


def segments(out):
    return sorted(Path(f"{out}.parts").glob("*.h5"))


@pytest.mark.parametrize(("step", "count"), STEPS)
def test_a_killed_run_resumes_to_the_same_arrays(make, tmp_path, step, count):
    out, rows = tmp_path / "t.h5", make.table(n_samples=8)
    assert killed_at(out, step, count) == (-signal.SIGKILL, "")
    sealed_before = {path.name: path.read_bytes() for path in segments(out)}
    with open_writer(out, make.manifest()) as writer:
        assert not list(writer.parts.glob("*.tmp"))
        n_done = len(writer.done)
        assert make.add_missing(writer, make.rows_one_by_one(rows)) == len(rows.view) - n_done
        assert all((writer.parts / name).read_bytes() == content for name, content in sealed_before.items())
        reader = writer.finish()
    make.assert_equal(reader.table(), rows)
    assert os.listdir(tmp_path) == ["t.h5"]


def test_a_run_killed_again_and_again_ends_in_the_same_arrays(make, tmp_path):
    out, rows, n_kills = tmp_path / "t.h5", make.table(n_samples=8), 0
    for step in ("after publish_new", "before publish_new", "after allocate", "before publish_new of out"):
        n_kills += killed_at(out, step, 1)[0] == -signal.SIGKILL
    make.assert_equal(make.build(out, rows).table(), rows)
    assert n_kills == 4
    assert os.listdir(tmp_path) == ["t.h5"]


def test_an_extension_killed_while_replacing_keeps_one_of_the_two_caches(make, tmp_path):
    for step in ("before publish_replace of out", "after publish_replace of out"):
        out, rows = tmp_path / step.split()[0] / "t.h5", make.table(n_samples=8)
        out.parent.mkdir()
        with open_writer(out, make.manifest()) as writer:
            make.add_missing(writer, make.rows_one_by_one(rows)[:5])
            writer.finish()
        assert killed_at(out, step, 1)[0] == -signal.SIGKILL
        CacheReader(out).verify()
        make.assert_equal(make.build(out, rows).table(), rows)
        assert os.listdir(out.parent) == ["t.h5"]


def test_an_exception_keeps_sealed_segments_and_seals_nothing(make, tmp_path):
    out, rows = tmp_path / "t.h5", make.table(n_samples=8)
    interrupted(out, make, rows, n_adds=9)
    assert [CacheReader(path).n_rows for path in segments(out)] == [4, 4]
    with open_writer(out, make.manifest()) as writer:
        assert len(writer.done) == 8
        make.add_missing(writer, make.rows_one_by_one(rows)[:10])
    assert sum(CacheReader(path).n_rows for path in segments(out)) == 10


def test_an_exception_before_the_first_segment_leaves_nothing(make, tmp_path):
    interrupted(tmp_path / "t.h5", make, make.table(), n_adds=3)
    assert list(tmp_path.iterdir()) == []


def test_segments_are_sealed_by_rows_or_by_time(make, tmp_path):
    adds = make.rows_one_by_one(make.table())
    for name, options, expected in [("rows", {"segment_rows": 2}, 1), ("time", {"segment_s": 0.0}, 2)]:
        with open_writer(tmp_path / name, make.manifest(), **options) as writer:
            make.add_missing(writer, adds[:2])
            assert len(segments(tmp_path / name)) == expected
            assert len(writer.done) == 2


def test_more_views_of_a_sample_extend_the_cache(make, tmp_path):
    out, rows = tmp_path / "t.h5", make.table(n_samples=8)
    adds = make.rows_one_by_one(rows)
    for part in (adds[::3], adds[1::3], adds[2::3]):
        with open_writer(out, make.manifest()) as writer:
            make.add_missing(writer, part)
            writer.finish()
    make.assert_equal(CacheReader(out).table(), rows)


def test_views_of_one_sample_may_come_together_and_unsorted(make, tmp_path):
    rows = make.table(n_samples=1, max_views=4, seed=5)
    order = np.argsort(-rows.view.astype(int))
    assert len(order) > 1
    with open_writer(tmp_path / "t.h5", make.manifest()) as writer:
        writer.add(
            key=bytes(rows.key[0]),
            views=rows.view[order],
            params=rows.params[order],
            witness=rows.witness[order],
            logits={task: values[order].astype(float) for task, values in rows.logits.items()},
            features={name: values[order] for name, values in rows.features.items()},
            name=rows.names[0],
        )
        make.assert_equal(writer.finish().table(), rows)


def test_finish_with_nothing_new_gives_the_file_as_it_is(make, tmp_path):
    out = tmp_path / "t.h5"
    make.build(out, make.table())
    before = out.read_bytes()
    with open_writer(out, make.manifest()) as writer:
        assert make.add_missing(writer, make.rows_one_by_one(make.table())) == 0
        assert writer.finish().n_rows == len(make.table().view)
    assert out.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.h5"]


def test_finish_without_rows_is_refused(make, tmp_path):
    with pytest.raises(CacheMismatch, match="nothing was added"), open_writer(tmp_path / "t.h5", make.manifest()) as w:
        w.finish()
    assert list(tmp_path.iterdir()) == []


def test_resume_keeps_the_compute_setting_of_the_parts(make, tmp_path, caplog):
    out = tmp_path / "t.h5"
    interrupted(out, make, make.table(n_samples=8))
    with SegmentedWriter(out, make.manifest(), {"batch": 32, "device": ("cuda", 0)}) as writer:
        assert writer.compute_setting == {"batch": 8}
    assert "batch: 8 against 32" in caplog.text
    with SegmentedWriter(tmp_path / "new.h5", make.manifest(), {"device": ("cuda", 0)}) as writer:
        assert writer.compute_setting == {"device": ["cuda", 0]}
        plan = json.loads((writer.parts / "plan.json").read_text())
    assert plan["recipe_id"] == make.manifest().recipe_id
    assert plan["identity"] == make.manifest().identity


def test_parts_of_another_recipe_are_refused_with_both_remedies(make, tmp_path):
    out = tmp_path / "t.h5"
    interrupted(out, make, make.table(n_samples=8))
    before = sorted(path.name for path in (tmp_path / "t.h5.parts").iterdir())
    with pytest.raises(CacheMismatch) as caught, open_writer(out, make.manifest(precision="bf16", teacher="other")):
        pass
    for text in ('precision: "fp32" against "bf16"', "teacher:", "choose another -o", "delete the folder"):
        assert text in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "t.h5.parts").iterdir()) == before


def test_an_output_of_another_recipe_is_refused_untouched(make, tmp_path):
    out = tmp_path / "t.h5"
    make.build(out, make.table())
    before = out.read_bytes()
    with pytest.raises(CacheMismatch, match="precision"), open_writer(out, make.manifest(precision="bf16")):
        pass
    assert out.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.h5"]


def test_an_output_that_is_no_cache_is_refused_untouched(make, tmp_path):
    out = tmp_path / "t.h5"
    out.write_text("my notes")
    with pytest.raises(CacheDamaged, match=r"t\.h5"), open_writer(out, make.manifest()):
        pass
    assert out.read_text() == "my notes"
    assert os.listdir(tmp_path) == ["t.h5"]


def test_a_damaged_output_is_refused_untouched(make, tmp_path):
    out = tmp_path / "t.h5"
    make.build(out, make.table())
    make.flip(out, out, make.offsets(out)["logits/0"][0], 1)
    before = out.read_bytes()
    with pytest.raises(CacheDamaged, match="logits/0 rows 0-"), open_writer(out, make.manifest()):
        pass
    assert out.read_bytes() == before
    assert os.listdir(tmp_path) == ["t.h5"]


def test_a_damaged_part_is_set_aside_and_its_rows_are_missing(make, tmp_path, caplog):
    out, rows = tmp_path / "t.h5", make.table(n_samples=8)
    interrupted(out, make, rows)
    part = segments(out)[0]
    make.flip(part, part, make.offsets(part)["features/embedding"][0], 2)
    with open_writer(out, make.manifest()) as writer:
        assert len(writer.done) == 4
        assert len(list(writer.parts.glob("*.damaged"))) == 1
        make.add_missing(writer, make.rows_one_by_one(rows))
        reader = writer.finish()
    assert part.name in caplog.text
    make.assert_equal(reader.table(), rows)
    assert os.listdir(tmp_path) == ["t.h5"]


def test_a_plan_without_rows_binds_nobody(make, tmp_path):
    with open_writer(tmp_path / "t.h5", make.manifest()) as writer:
        plan = writer.parts / "plan.json"
        left_by_a_killed_run = plan.read_bytes()
    plan.parent.mkdir()
    plan.write_bytes(left_by_a_killed_run)
    other = make.manifest(precision="bf16")
    with SegmentedWriter(tmp_path / "t.h5", other, {"batch": 32}) as writer:
        assert writer.compute_setting == {"batch": 32}
        make.add_missing(writer, make.rows_one_by_one(make.table()))
        assert writer.finish().recipe_id == other.recipe_id
    assert os.listdir(tmp_path) == ["t.h5"]


def test_finish_puts_fields_into_the_provenance_and_rewrites_only_for_new_ones(make, tmp_path):
    out, rows = tmp_path / "t.h5", make.table()
    make.build(out, rows)
    for fields in ({"skipped": ["a"]}, {"skipped": ["a"]}, {"skipped": []}):
        before = out.read_bytes()
        known = CacheReader(out).manifest.provenance.get("skipped")
        with open_writer(out, make.manifest()) as writer:
            reader = writer.finish(fields)
        assert (out.read_bytes() == before) == (known == fields["skipped"])
        assert reader.manifest.provenance == make.manifest().provenance | fields
        make.assert_equal(reader.table(), rows)


def test_a_part_of_another_recipe_is_refused(make, tmp_path):
    out = tmp_path / "t.h5"
    interrupted(out, make, make.table(n_samples=8))
    make.write(tmp_path / "t.h5.parts" / "theirs.h5", make.table(seed=1), make.manifest(precision="bf16"))
    with pytest.raises(CacheMismatch, match=r"theirs\.h5 is of another recipe"), open_writer(out, make.manifest()):
        pass


def test_a_teammates_segments_count_as_done(make, tmp_path):
    out, rows = tmp_path / "t.h5", make.table(n_samples=8)
    interrupted(tmp_path / "theirs.h5", make, rows)
    (tmp_path / "t.h5.parts").mkdir()
    for path in segments(tmp_path / "theirs.h5"):
        shutil.copy(path, tmp_path / "t.h5.parts")
    with open_writer(out, make.manifest()) as writer:
        assert make.add_missing(writer, make.rows_one_by_one(rows)) == len(rows.view) - 8
        make.assert_equal(writer.finish().table(), rows)


def test_two_writers_on_one_output_are_kept_apart(make, tmp_path):
    out = tmp_path / "t.h5"
    with open_writer(out, make.manifest()) as writer:
        with pytest.raises(CacheBusy, match=f"pid {os.getpid()}"), open_writer(out, make.manifest()):
            pass
        make.add_missing(writer, make.rows_one_by_one(make.table()))
        make.assert_equal(writer.finish().table(), make.table())


def test_an_output_that_appears_during_the_build_is_merged_with(make, tmp_path):
    out, rows = tmp_path / "t.h5", make.table(n_samples=8)
    adds = make.rows_one_by_one(rows)
    with open_writer(out, make.manifest()) as writer:
        make.add_missing(writer, adds[:6])
        with open_writer(tmp_path / "other.h5", make.manifest()) as other:
            make.add_missing(other, adds[4:])
            other.finish()
        (tmp_path / "other.h5").rename(out)
        make.assert_equal(writer.finish().table(), rows)


def test_an_output_that_vanishes_during_the_build_keeps_the_parts(make, tmp_path):
    out, rows = tmp_path / "t.h5", make.table(n_samples=8)
    adds = make.rows_one_by_one(rows)
    with open_writer(out, make.manifest()) as writer:
        make.add_missing(writer, adds[:4])
        writer.finish()
    with open_writer(out, make.manifest()) as writer:
        make.add_missing(writer, adds)
        out.unlink()
        with pytest.raises(CacheMismatch, match="vanished"):
            writer.finish()
    make.assert_equal(make.build(out, rows).table(), rows)


def test_a_full_disk_keeps_the_segments_before(make, tmp_path, monkeypatch):
    out, rows, allocate = tmp_path / "t.h5", make.table(n_samples=8), durable.allocate

    def full(fd, size_bytes):
        if len(segments(out)) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(fd, size_bytes)

    monkeypatch.setattr(durable, "allocate", full)
    with pytest.raises(CacheDiskFull, match="run the same command again"):
        make.build(out, rows)
    assert len(segments(out)) == 2
    assert not list((tmp_path / "t.h5.parts").glob("*.tmp"))
    monkeypatch.undo()
    make.assert_equal(make.build(out, rows).table(), rows)


def bad_adds():
    def without(add, name):
        return {**add, "logits": {task: values for task, values in add["logits"].items() if task != name}}

    yield "16 bytes", lambda add: {**add, "key": b"short"}
    yield "distinct", lambda add: {**add, "views": np.array([-1])}
    yield "distinct", lambda add: {**add, "views": np.array([65536])}
    yield "integers", lambda add: {**add, "views": np.array([0.0])}
    yield "integers", lambda add: {**add, "views": np.array([], int)}
    yield "params: shape", lambda add: {**add, "params": add["params"][:, :2]}
    yield "witness: shape", lambda add: {**add, "witness": add["witness"][:, :2]}
    yield "witness: int64", lambda add: {**add, "witness": add["witness"].astype(int)}
    yield "logits of the tasks", lambda add: without(add, "class")
    yield "logits of 'class': shape", lambda add: {**add, "logits": {t: v[:, :2] for t, v in add["logits"].items()}}
    yield "not finite", lambda add: {**add, "params": add["params"] * np.float32("inf")}
    yield "not finite", lambda add: {**add, "features": {"embedding": np.full((1, 2, 3), 70_000.0)}}
    yield "feature name", lambda add: {**add, "features": {"../x": np.zeros((1, 2))}}
    yield "has no embeddings, the rows before it have embeddings", lambda add: {**add, "features": {}}
    yield "NUL", lambda add: {**add, "name": "a\0b"}
    yield "came before", lambda add: add


@pytest.mark.parametrize(("reason", "spoil"), list(bad_adds()))
def test_writer_refuses_rows_that_do_not_fit(make, tmp_path, reason, spoil):
    first, second = make.rows_one_by_one(make.table())[:2]
    with open_writer(tmp_path / "t.h5", make.manifest()) as writer:
        writer.add(**first)
        with pytest.raises(CacheMismatch, match=reason):
            writer.add(**spoil(first if reason == "came before" else second))
        writer.add(**second)
        assert writer.finish().n_rows == 2


def test_a_row_that_is_done_is_refused(make, tmp_path):
    make.build(tmp_path / "t.h5", make.table())
    with open_writer(tmp_path / "t.h5", make.manifest()) as writer, pytest.raises(CacheMismatch, match="came before"):
        writer.add(**make.rows_one_by_one(make.table())[0])


def test_a_closed_writer_and_bad_settings_are_refused(make, tmp_path):
    with open_writer(tmp_path / "t.h5", make.manifest()) as writer:
        pass
    for call in (writer.seal, writer.finish):
        with pytest.raises(CacheMismatch, match="not open"):
            call()
    with pytest.raises(CacheMismatch, match="segment_rows"):
        open_writer(tmp_path / "t.h5", make.manifest(), segment_rows=0)
    with pytest.raises(CacheMismatch, match="not a folder"), open_writer(tmp_path / "none" / "t.h5", make.manifest()):
        pass


def test_files_of_others_in_the_parts_folder_stay(make, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger=workspace.__name__)
    with open_writer(tmp_path / "t.h5", make.manifest()) as writer:
        (writer.parts / "notes.txt").write_text("mine")
        make.add_missing(writer, make.rows_one_by_one(make.table()))
        writer.finish()
    assert os.listdir(tmp_path / "t.h5.parts") == ["notes.txt"]
    assert "stays" in caplog.text
