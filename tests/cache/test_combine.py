import errno
import os
import resource
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import CacheReader, Manifest, SegmentedWriter, Table, combine, durable, layout, merge
from cache.errors import CacheBusy, CacheDamaged, CacheDiskFull, CacheMismatch, CacheNotFound
from cache.fill import NewFile, put_names
from cache.survey import tolerance_logits
from cache.workspace import Workspace


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_merge_gives_the_union_in_any_order(make, tmp_path):
    table = make.table(n_samples=7)
    every = range(len(table.key))
    a = make.write(tmp_path / "a.h5", make.part(table, [at for at in every if at % 2]))
    b = make.write(tmp_path / "b.h5", make.part(table, [at for at in every if at % 2 == 0]))
    whole = make.write(tmp_path / "whole.h5", table)
    for index, sources in enumerate([(a, b), (b, a), (a, whole, b), (whole, whole)]):
        merged = merge(sources, tmp_path / f"out{index}.h5")
        merged.verify()
        make.assert_equal(merged.table(), table)
        assert merged.content_id == CacheReader(whole).content_id
        assert merged.manifest.provenance == make.manifest().provenance | {"merged_from": len(set(sources))}


def test_merge_keeps_the_first_of_two_answers_within_the_tolerance(make, tmp_path):
    table = make.table()
    a = make.write(tmp_path / "a.h5", table)
    b = make.write(tmp_path / "b.h5", make.nudged(table, 5e-5))
    make.assert_equal(merge([a, b], tmp_path / "ab.h5").table(), table)
    make.assert_equal(merge([b, a], tmp_path / "ba.h5").table(), make.nudged(table, 5e-5))


@pytest.mark.parametrize(
    ("precision", "within", "beyond"),
    [("fp32", 9e-5, 2e-4), (None, 9e-5, 2e-4), ("fp16", 0.09, 0.2), ("bf16", 0.9, 1.1)],
)
def test_merge_tolerates_by_the_recipes_precision(make, tmp_path, precision, within, beyond):
    table, manifest = make.table(), make.manifest(precision=precision)
    a = make.write(tmp_path / "a.h5", table, manifest)
    near = make.write(tmp_path / "near.h5", make.nudged(table, within), manifest)
    far = make.write(tmp_path / "far.h5", make.nudged(table, -beyond), manifest)
    assert tolerance_logits(manifest) == pytest.approx((within + beyond) / 2, rel=0.4)
    merge([a, near], tmp_path / "out.h5")
    with pytest.raises(CacheMismatch, match=rf"disagree in logits/0 in {len(table.view)} of {len(table.view)}"):
        merge([a, far], tmp_path / "out2.h5")
    assert left(tmp_path) == ["a.h5", "far.h5", "near.h5", "out.h5"]


def test_merge_widens_the_tolerance_by_one_step_of_float16(make, tmp_path):
    manifest = make.manifest(tasks=[{"name": "class", "classes": [f"c{at}" for at in range(300)]}])
    logits = np.full((len(make.table().view), 300), 20, "<f2")
    steps = [0, 1, 3]
    tables = [
        Table(**{**vars(make.table()), "logits": {"class": logits + np.float16(step * 0.015625)}}) for step in steps
    ]
    a, b, c = (make.write(tmp_path / f"{at}.h5", table, manifest) for at, table in enumerate(tables))
    assert merge([a, b], tmp_path / "out.h5").logits([0]).dtype == np.float16
    with pytest.raises(CacheMismatch, match="disagree"):
        merge([a, c], tmp_path / "out2.h5")


def test_merge_refuses_other_params_of_one_view(make, tmp_path):
    table = make.table()
    params = table.params.copy()
    params[2, 1] = np.nextafter(params[2, 1], np.float32(2))
    a = make.write(tmp_path / "a.h5", table)
    b = make.write(tmp_path / "b.h5", Table(**{**vars(table), "params": params}))
    with pytest.raises(CacheMismatch, match=r"b\.h5 .* disagree in rows/params in 1 of"):
        merge([a, b], tmp_path / "out.h5")
    assert left(tmp_path) == ["a.h5", "b.h5"]


def test_merge_lists_all_differences_of_the_recipes(make, tmp_path):
    a = make.write(tmp_path / "a.h5", make.table())
    tasks = [{"name": "class", "classes": ["mel", "nv", "df"]}, {"name": "sex/é", "classes": ["f", "m"]}]
    b = make.write(tmp_path / "b.h5", make.table(), make.manifest(tasks=tasks, precision="bf16"))
    with pytest.raises(CacheMismatch) as caught:
        merge([a, b], tmp_path / "out.h5")
    assert 'precision: "fp32" against "bf16"' in str(caught.value)
    assert 'tasks[0].classes[2]: "bkl" against "df"' in str(caught.value)


def test_merge_refuses_sources_with_other_features(make, tmp_path):
    a = make.write(tmp_path / "a.h5", make.table())
    b = make.write(tmp_path / "b.h5", Table(**{**vars(make.table(seed=1)), "features": {}}))
    with pytest.raises(CacheMismatch) as caught:
        merge([a, b], tmp_path / "out.h5")
    assert str(caught.value) == (
        f"{a} has embeddings (2 x 3 numbers) and {b} has no embeddings: build both with --embedding or both with "
        f"--no-embedding, or train on them as they are, which needs none: softlabel train DATA {a} {b} -o RUN"
    )
    c = make.write(tmp_path / "c.h5", with_feature(make.table(seed=1), "seen"))
    with pytest.raises(CacheMismatch, match=r"c\.h5 has embeddings \(2 x 3 numbers\) and the feature seen: leave one"):
        merge([a, c], tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def with_feature(table, name):
    return Table(**{**vars(table), "features": {**table.features, name: np.ones(len(table.view), "<f2")}})


def test_a_source_that_is_named_twice_counts_once_with_a_notice(make, tmp_path, caplog):
    a = make.write(tmp_path / "a.h5", make.table())
    caplog.set_level("INFO")
    make.assert_equal(merge([a, tmp_path / "." / "a.h5", a], tmp_path / "out.h5").table(), make.table())
    assert caplog.messages == [f"notice   {a} is named twice, and counts once"] * 2


def test_merge_keeps_names_only_if_every_source_has_them(make, tmp_path, caplog):
    a = make.write(tmp_path / "a.h5", make.table())
    b = make.write(tmp_path / "b.h5", make.table(seed=1, names=False))
    assert merge([b], tmp_path / "b_alone.h5").names is None
    assert "names" not in caplog.text
    assert merge([a, b], tmp_path / "out.h5").names is None
    remedy = f"a cache with names: softlabel cache build DATA -o OTHER.h5 --reuse {b}"
    assert f"{b} has no names of images, so {tmp_path / 'out.h5'} stores none; {remedy}" in caplog.text


def test_a_cache_without_names_that_is_extended_says_so_once_and_not_in_a_circle(make, tmp_path, caplog):
    named, bare = make.table(seed=1), make.table(seed=2, names=False)
    out = make.write(tmp_path / "t.h5", bare)
    assert make.build(out, named).names is None
    (said,) = caplog.messages
    assert said == (
        f"{out} has no names of images, so it stores none of the new ones; a cache with names: "
        f"softlabel cache build DATA -o OTHER.h5 --reuse {out}"
    )
    caplog.clear()
    assert make.build(make.write(tmp_path / "n.h5", named), bare).names is None
    (said,) = caplog.messages
    assert said == f"{tmp_path / 'n.h5'} stores no names of images any more: the rows that were added have none"


def test_merge_lists_the_skipped_samples_of_all_sources_that_it_has_no_rows_of(make, tmp_path):
    table, absent = make.table(n_samples=4), "ab" * 16
    first, last = bytes(table.key[0]).hex(), bytes(table.key[-1]).hex()

    def source(name, samples, **reasons):
        listed = {"skipped": [{"key": key, "reason": reason} for key, reason in reasons.items()]} if reasons else {}
        return make.write(tmp_path / name, make.part(table, samples), Manifest(make.manifest().identity, listed))

    a = source("a.h5", [1, 2])
    b = source("b.h5", [0], **{absent: "cut", last: "unreadable"})
    c = source("c.h5", [len(table.key) - 1], **{absent: "no image", first: "unreadable", "00" * 16: "empty"})
    assert merge([a, b, c], tmp_path / "abc.h5").manifest.skipped == {"00" * 16: "empty", absent: "cut"}
    assert merge([b, a], tmp_path / "ba.h5").manifest.skipped == {absent: "cut", last: "unreadable"}
    d = source("d.h5", [0], **{last: "unreadable"})
    assert merge([d, c], tmp_path / "dc.h5").manifest.skipped == {absent: "no image", "00" * 16: "empty"}
    e = source("e.h5", [len(table.key) - 1])
    assert merge([d, e], tmp_path / "de.h5").manifest.provenance == {"merged_from": 2}


def test_merge_has_the_largest_number_of_files_without_bytes_for_each_reason(make, tmp_path):
    table = make.table(n_samples=3)
    counts = ({"empty": 2, "a folder": 1}, {}, {"empty": 3, "a link": 1})
    sources = [
        make.write(
            tmp_path / f"{i}.h5", make.part(table, [i]), Manifest(make.manifest().identity, {"skipped_files": counted})
        )
        for i, counted in enumerate(counts)
    ]
    assert merge(sources, tmp_path / "all.h5").manifest.skipped_files == {"empty": 3, "a folder": 1, "a link": 1}


def test_merge_refuses_a_damaged_source(make, tmp_path):
    a, b = make.write(tmp_path / "a.h5", make.table()), make.write(tmp_path / "b.h5", make.table(seed=1))
    make.flip(b, b, make.offsets(b)["logits/1"][0], 3)
    with pytest.raises(CacheDamaged, match=r"b\.h5 is damaged .* logits/1 rows 0-"):
        merge([a, b], tmp_path / "out.h5")
    assert left(tmp_path) == ["a.h5", "b.h5"]


def test_merge_never_replaces_a_file(make, tmp_path):
    a, b = make.write(tmp_path / "a.h5", make.table()), make.write(tmp_path / "b.h5", make.table(seed=1))
    before = b.read_bytes()
    with pytest.raises(CacheMismatch, match="exists already"):
        merge([a], b)
    with pytest.raises(CacheMismatch, match="exists already"):
        merge([a, b], b)
    with pytest.raises(CacheMismatch, match="nothing to merge"):
        merge([], tmp_path / "out.h5")
    with pytest.raises(CacheNotFound):
        merge([a, tmp_path / "none.h5"], tmp_path / "out.h5")
    assert b.read_bytes() == before
    assert left(tmp_path) == ["a.h5", "b.h5"]


def test_merge_takes_a_folder_for_the_caches_in_it(make, tmp_path):
    table, folder = make.table(n_samples=7), tmp_path / "parts"
    folder.mkdir()
    make.write(folder / "b.h5", make.part(table, range(3)))
    make.write(folder / "a.h5", make.part(table, range(3, len(table.key))))
    (folder / "plan.json").write_text("{}")
    (folder / "._a.h5").write_text("what a Mac lays beside a.h5")
    make.assert_equal(merge([folder, folder / "a.h5"], tmp_path / "out.h5").table(), table)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheMismatch, match="folder without caches"):
        merge([tmp_path / "empty"], tmp_path / "out2.h5")


def test_two_merges_into_one_file_are_kept_apart(make, tmp_path):
    a, out = make.write(tmp_path / "a.h5", make.table()), tmp_path / "out.h5"
    with Workspace(out), pytest.raises(CacheBusy, match=f"pid {os.getpid()}"):
        merge([a], out)
    make.assert_equal(merge([a], out).table(), make.table())
    assert left(tmp_path) == ["a.h5", "out.h5"]


def test_a_merge_sweeps_what_a_killed_one_left(make, tmp_path):
    a, parts = make.write(tmp_path / "a.h5", make.table()), tmp_path / "out.h5.parts"
    parts.mkdir()
    (parts / "out.h5.0123.tmp").write_text("half")
    merge([a], tmp_path / "out.h5")
    assert left(tmp_path) == ["a.h5", "out.h5"]


def test_merge_leaves_alone_what_appeared_meanwhile(make, tmp_path, monkeypatch):
    a, out, allocate = make.write(tmp_path / "a.h5", make.table()), tmp_path / "out.h5", durable.allocate

    def appear(fd, size_bytes):
        out.write_text("theirs")
        allocate(fd, size_bytes)

    monkeypatch.setattr(durable, "allocate", appear)
    with pytest.raises(CacheMismatch, match="appeared"):
        merge([a], out)
    assert out.read_text() == "theirs"
    assert left(tmp_path) == ["a.h5", "out.h5"]


def test_merge_on_a_full_disk_is_refused_before_any_work(make, tmp_path, monkeypatch):
    a = make.write(tmp_path / "a.h5", make.table())

    def full(fd, size_bytes):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "allocate", full)
    with pytest.raises(CacheDiskFull, match=r"no room for [\d,]{5,} bytes"):
        merge([a], tmp_path / "out.h5")
    assert left(tmp_path) == ["a.h5"]


def test_merge_within_a_file_size_limit_is_refused_cleanly(make, tmp_path):
    a = make.write(tmp_path / "a.h5", make.table())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CacheDiskFull, match="File too large"):
            merge([a], tmp_path / "out.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("most_open", [1, 4])
def test_merge_opens_a_few_sources_at_a_time(make, tmp_path, monkeypatch, most_open):
    monkeypatch.setattr(combine, "_MAX_OPEN", most_open)
    table = make.table(n_samples=40, max_views=2)
    sources = [make.write(tmp_path / f"{at}.h5", make.part(table, [at])) for at in range(len(table.key))]
    most, verify = [], CacheReader.verify

    def counting(reader):
        verify(reader)
        most.append(len(os.listdir("/dev/fd")))

    before = len(os.listdir("/dev/fd"))
    monkeypatch.setattr(CacheReader, "verify", counting)
    make.assert_equal(merge(sources, tmp_path / "out.h5").table(), table)
    assert len(most) == len(sources) + 1
    assert max(most) <= before + 4 + most_open


@st.composite
def tables(draw):
    """Any small table: keys full of NULs, any views, any finite logits, 1-2 tasks, params and features or none."""
    keys = sorted(
        draw(
            st.sets(
                st.binary(min_size=16, max_size=16) | st.binary(max_size=16).map(lambda k: k.ljust(16, b"\0")),
                min_size=1,
                max_size=6,
            )
        )
    )
    views = [sorted(draw(st.sets(st.integers(0, 65535), min_size=1, max_size=4))) for _ in keys]
    n_rows, n_params = sum(map(len, views)), draw(st.integers(0, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    logits = {"class": np.array(draw(st.lists(finite, min_size=2 * n_rows, max_size=2 * n_rows)), "<f4").reshape(-1, 2)}
    if draw(st.booleans()):
        logits["a/../b"] = rng.normal(size=(n_rows, 300)).astype("<f2")
    return Table(
        key=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16),
        first_row=np.cumsum([0, *map(len, views)]).astype("<u8"),
        view=np.concatenate(views).astype("<u2"),
        params=rng.normal(size=(n_rows, n_params)).astype("<f4"),
        witness=rng.integers(0, 256, (n_rows, 12), dtype=np.uint8),
        logits=logits,
        features={"embedding": rng.normal(size=(n_rows, 5)).astype("<f2")} if draw(st.booleans()) else {},
        names=draw(
            st.lists(
                st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
                min_size=len(keys),
                max_size=len(keys),
            )
            | st.none()
        ),
    )


@settings(max_examples=20, deadline=None, database=None)
@given(table=tables(), segment_rows=st.integers(1, 6), random=st.randoms(use_true_random=False))
def test_rows_in_any_order_through_segments_come_back_bit_for_bit(make, table, segment_rows, random):
    tasks = [{"name": task, "classes": [f"c{at}" for at in range(len(v[0]))]} for task, v in table.logits.items()]
    manifest = Manifest({"tasks": tasks, "view_columns": [f"p{at}" for at in range(table.params.shape[1])]}, {})
    adds = make.rows_one_by_one(table)
    random.shuffle(adds)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "t.h5"
        with SegmentedWriter(out, manifest, {}, segment_rows=segment_rows) as writer:
            assert make.add_missing(writer, adds) == len(table.view)
            merged = writer.finish()
        make.assert_equal(merged.table(), table)
        assert merged.find(table.key).tolist() == list(range(len(table.key)))
        assert os.listdir(folder) == ["t.h5"]


@settings(max_examples=30, deadline=None, database=None)
@given(data=st.data(), seed=st.integers(0, 9), most_open=st.integers(1, 4), stretch_bytes=st.integers(1, 200))
def test_any_shares_of_a_table_merge_to_it_in_pieces_of_any_size(make, data, seed, most_open, stretch_bytes):
    table = make.table(seed, n_samples=8)
    every = range(len(table.view))
    shares = [sorted(share) for share in data.draw(st.lists(st.sets(st.sampled_from(every), min_size=1), max_size=5))]
    rest = sorted(set(every) - set().union(*shares))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(combine, "_MAX_OPEN", most_open)
        sources = [
            make.write(Path(folder, f"{at}.h5"), make.nudged(make.of_rows(table, share), at * 1e-5))
            for at, share in enumerate([*shares, *([rest] if rest else [])])
        ]
        patch.setattr(layout, "_STRETCH_BYTES", stretch_bytes)
        merged = merge(sources, Path(folder, "out.h5")).table()
    first = np.array([next((at for at, share in enumerate(shares) if row in share), len(shares)) for row in every])
    said = table.logits["class"] + np.float32(first[:, None] * 1e-5)
    make.assert_equal(merged, Table(**{**vars(table), "logits": table.logits | {"class": said}}))


@pytest.mark.parametrize("order", [0, 1])
def test_merge_refuses_numbers_that_are_not_finite(make, tmp_path, order):
    table = make.table()
    sound, broken = make.write(tmp_path / "a.h5", table), tmp_path / "b.h5"
    specs = table.dims(manifest_bytes=len(make.manifest().to_bytes())).specs()
    table.logits["class"][0, 0] = np.nan
    with NewFile(broken, specs) as new:
        for name, array in table.objects().items():
            new.put(name, array)
        put_names(new, table.names)
        new.seal(make.manifest())
    assert CacheReader(broken).damaged_blocks() == []
    with pytest.raises(CacheDamaged, match=r"b\.h5 is not a sound cache: logits/0 is not finite in row 0"):
        merge([sound, broken][:: -1 if order else 1], tmp_path / "out.h5")
    assert left(tmp_path) == ["a.h5", "b.h5"]
