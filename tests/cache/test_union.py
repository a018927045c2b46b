"""Several caches read as one: what `merge` would write, without writing it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import CacheReader, Manifest, Table, layout, merge
from cache.errors import CacheDamaged, CacheMismatch, CacheNotFound
from cache.union import CacheUnion, open_caches

Halves = tuple[Path, Path]


@pytest.fixture
def table(make: ModuleType) -> Table:
    """Nine samples."""
    rows: Table = make.table(n_samples=9)
    return rows


@pytest.fixture
def halves(make: ModuleType, table: Table, tmp_path: Path) -> Halves:
    """Every other row of it, so that samples are torn between the files; some rows are in both."""
    every = np.arange(len(table.view))
    one = make.write(tmp_path / "a.h5", make.of_rows(table, every[(every % 2 == 0) | (every % 5 == 0)]))
    return one, make.write(tmp_path / "b.h5", make.of_rows(table, every[every % 2 == 1]))


def assert_same_answers(union: CacheReader, merged: CacheReader, make: ModuleType) -> None:
    make.assert_equal(union.table(), merged.table())
    assert union.manifest.to_bytes() == merged.manifest.to_bytes()
    assert (union.cache_id, union.content_id) == (merged.cache_id, merged.content_id)
    assert union.dims == merged.dims
    assert list(union) == list(merged)


@pytest.mark.parametrize("memory_map", [True, False])
def test_a_union_answers_as_the_merged_file(
    memory_map: bool, halves: Halves, make: ModuleType, table: Table, tmp_path: Path
) -> None:
    union, merged = open_caches(halves, memory_map=memory_map), merge(halves, tmp_path / "merged.h5")
    assert isinstance(union, CacheUnion)
    assert_same_answers(union, merged, make)
    make.assert_equal(union.table(), table)
    union.verify()
    for rows in (3, [3], [[4, 1], [0, 4]], slice(2, 9, 3), range(5, 2, -1), [], np.array([7, 7, 0], np.uint8)):
        for name in filter(lambda name: "/" in name and name.split("/")[0] in ("logits", "features"), table.objects()):
            one, other = union.read_object(name, rows), merged.read_object(name, rows)
            assert (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())
            assert one.flags.writeable
    key = bytes(table.key[3])
    assert union[key].views.tolist() == merged[key].views.tolist()
    with pytest.raises(LookupError, match="row 99 of"):
        union.logits([99])


@settings(max_examples=15, deadline=None, database=None)
@given(seed=st.integers(0, 2**32 - 1), n_sources=st.integers(2, 4), stretch_bytes=st.sampled_from([1, 100, 8 << 20]))
def test_any_shares_of_any_rows_are_read_as_they_would_be_merged(
    make: ModuleType, seed: int, n_sources: int, stretch_bytes: int
) -> None:
    generator = np.random.default_rng(seed)
    whole = make.table(seed=seed, n_samples=6, names=bool(seed % 2))
    owner = generator.integers(0, 2**n_sources, len(whole.view))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_STRETCH_BYTES", stretch_bytes)
        sources = []
        for number in range(n_sources):
            chosen = np.flatnonzero(owner >> number & 1)
            if len(chosen):
                rows = make.nudged(make.of_rows(whole, chosen), number * 1e-5)  # two honest answers to one question
                sources.append(make.write(Path(folder) / f"{number}.h5", rows))
        if len(sources) > 1:
            assert_same_answers(open_caches(sources), merge(sources, Path(folder) / "merged.h5"), make)


def test_the_first_of_two_honest_answers_is_taken(make: ModuleType, table: Table, tmp_path: Path) -> None:
    a = make.write(tmp_path / "a.h5", table)
    b = make.write(tmp_path / "b.h5", make.nudged(table, 5e-5))
    make.assert_equal(open_caches([b, a]).table(), make.nudged(table, 5e-5))
    make.assert_equal(open_caches([a, b]).table(), table)


def test_files_that_contradict_each_other_are_refused_as_in_a_merge(
    make: ModuleType, table: Table, tmp_path: Path
) -> None:
    params = table.params.copy()
    params[2, 1] = np.nextafter(params[2, 1], np.float32(2))
    a = make.write(tmp_path / "a.h5", table)
    for name, other in (
        ("logits/0", make.nudged(table, 2e-4)),
        ("rows/params", Table(**{**vars(table), "params": params})),
    ):
        b = make.write(tmp_path / f"{name[0]}.h5", other)
        with pytest.raises(CacheMismatch) as caught:
            open_caches([a, b])
        with pytest.raises(CacheMismatch) as merging:
            merge([a, b], tmp_path / "merged.h5")
        assert str(caught.value) == str(merging.value)
        assert f"{b} and an earlier source disagree in {name} in " in str(caught.value)


def test_other_recipes_are_refused_with_all_that_differs_and_what_to_do(
    make: ModuleType, table: Table, tmp_path: Path
) -> None:
    a = make.write(tmp_path / "a.h5", table)
    b = make.write(tmp_path / "b.h5", table, make.manifest(precision="bf16", teacher={"weights": "11"}))
    with pytest.raises(CacheMismatch) as caught:
        open_caches([a, b])
    title, *lines = str(caught.value).splitlines()
    assert title == (
        f"{a} and {b} are of other recipes, with another --precision (the first against the second): leave one of them "
        "out, or build it anew with the settings of the other"
    )
    assert [line.split(":")[0].strip() for line in lines] == ["precision", "teacher.scale", "teacher.weights"]


def test_one_file_or_the_same_one_twice_is_that_file(
    halves: Halves, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "link.h5").symlink_to(halves[0])
    for paths in (str(halves[0]), [halves[0]], [halves[0], halves[0]], [halves[0], tmp_path / "link.h5"]):
        reader = open_caches(paths)
        assert type(reader) is CacheReader
        assert reader.path == halves[0]
    twice = open_caches([*halves, halves[0]])
    assert isinstance(twice, CacheUnion)
    assert twice.paths == halves
    assert caplog.messages[-1] == f"notice   {halves[0]} is named twice, and counts once"
    assert len(caplog.messages) == 3


def test_embeddings_that_some_files_lack_are_left_out_and_nothing_else(
    make: ModuleType, halves: Halves, table: Table, tmp_path: Path
) -> None:
    def bare_file(source: Path) -> Path:
        return make.write(tmp_path / f"bare {source.name}", replace(CacheReader(source).table(), features={}))

    bare = [bare_file(half) for half in halves]
    for mixed in ((halves[0], bare[1]), (bare[0], halves[1])):
        union = open_caches(mixed)
        assert isinstance(union, CacheUnion)
        assert union.without_embeddings == tuple(path for path in mixed if path in bare)
        assert_same_answers(union, merge(bare, tmp_path / "merged.h5"), make)
        (tmp_path / "merged.h5").unlink()
        union.verify()
        make.assert_equal(pickle.loads(pickle.dumps(union)).table(), replace(table, features={}))
    for alike in (halves, bare):
        union = open_caches(alike)
        assert isinstance(union, CacheUnion)
        assert union.without_embeddings == ()


def test_any_other_feature_is_in_all_files_or_they_are_refused(
    make: ModuleType, halves: Halves, tmp_path: Path
) -> None:
    """Such as the one that says which images a teacher was fitted on, which no reader may miss."""
    rows = CacheReader(halves[1]).table()
    features = {"seen": np.ones(len(rows.view), "<f2")}
    other = make.write(tmp_path / "c.h5", replace(rows, features=features))
    with pytest.raises(
        CacheMismatch, match=r"numbers\) and \S+ has no embeddings and the feature seen: leave one of them"
    ):
        open_caches([halves[0], other])


def test_it_says_how_many_rows_come_from_each_file(halves: Halves, table: Table) -> None:
    a, b = (CacheReader(half).n_rows for half in halves)
    union = open_caches(halves)
    assert isinstance(union, CacheUnion)
    assert union.shares == ((halves[0], a, 0), (halves[1], b, a + b - len(table.view)))
    assert a + b > len(table.view)


def test_a_file_that_is_missing_is_named(halves: Halves, tmp_path: Path) -> None:
    with pytest.raises(CacheNotFound, match=r"none\.h5"):
        open_caches([*halves, tmp_path / "none.h5"])
    with pytest.raises(CacheMismatch, match="name one or more"):
        open_caches([])


def test_the_seal_is_that_of_these_files_in_this_order(halves: Halves, make: ModuleType, tmp_path: Path) -> None:
    seal = open_caches(halves).seal
    assert seal == open_caches(halves).seal
    assert len(seal) == 32
    others = {seal, open_caches(halves[::-1]).seal, *(CacheReader(half).seal for half in halves)}
    third = make.write(tmp_path / "c.h5", make.table(seed=4))
    assert len({*others, open_caches([*halves, third]).seal}) == 5


def test_messages_name_the_files_or_the_first_of_many(halves: Halves, make: ModuleType, tmp_path: Path) -> None:
    a, b = halves
    assert str(open_caches(halves).path) == f"the union of {a} and {b}"
    more = [make.write(tmp_path / f"{number}.h5", make.table(seed=number)) for number in (7, 8)]
    assert str(open_caches([a, b, more[0]]).path) == f"the union of {a}, {b} and {more[0]}"
    assert str(open_caches([a, b, *more]).path) == f"the union of {a}, {b} and 2 more files"


def test_damage_is_told_with_the_name_of_its_file(halves: Halves, make: ModuleType) -> None:
    for half, name in zip(halves, ("logits/1", "rows/witness"), strict=True):
        make.flip(half, half, make.offsets(half)[name][0], 3)
    union = open_caches(halves)
    last = [CacheReader(half).n_rows - 1 for half in halves]
    assert union.damaged_blocks() == [
        (f"{halves[0]}: logits/1", 0, last[0]), (f"{halves[1]}: rows/witness", 0, last[1])
    ]  # fmt: skip
    assert union.damaged_blocks(["logits/0"]) == []
    with pytest.raises(CacheDamaged) as caught:
        union.verify()
    one, two = str(caught.value).splitlines()
    assert one.startswith(f"{halves[0]} is damaged in 1 block: logits/1 rows 0-{last[0]}. ")
    assert two.startswith(f"{halves[1]} is damaged in 1 block: rows/witness rows 0-{last[1]}. ")
    union.verify_objects(["logits/0", "rows/params"])
    with pytest.raises(CacheDamaged, match=r"b\.h5 is damaged"):
        union.verify_objects(["rows/witness"])


def test_a_shared_row_that_was_damaged_is_called_damaged(make: ModuleType, table: Table, tmp_path: Path) -> None:
    a, b = (make.write(tmp_path / name, table) for name in ("a.h5", "b.h5"))
    make.flip(b, b, make.offsets(b)["logits/0"][0] + 3, 6)
    with pytest.raises(CacheDamaged, match=r"b\.h5 is damaged in 1 block: logits/0"):
        open_caches([a, b])


@pytest.mark.parametrize("is_used_before", [True, False])
def test_it_goes_to_another_process_as_names_and_seals(
    is_used_before: bool, halves: Halves, make: ModuleType, table: Table
) -> None:
    union = open_caches(halves, memory_map=False)
    if is_used_before:
        union.logits([0])
    pickled = pickle.dumps(union)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    make.assert_equal(again.table(), table)
    assert (again.seal, again.path) == (union.seal, union.path)
    late = pickle.loads(pickled)
    make.write(halves[1].with_name("other.h5"), make.table(seed=5)).replace(halves[1])
    with pytest.raises(CacheDamaged, match=r"b\.h5 was replaced by another cache"):
        late.logits([0])


def test_closed_it_opens_its_files_again(halves: Halves, table: Table) -> None:
    with open_caches(halves) as union:
        before = union.logits([0, 1, 2])
    assert union.logits([0, 1, 2]).tobytes() == before.tobytes()
    union.close()


def test_names_and_skipped_images_are_those_of_a_merge(
    make: ModuleType, table: Table, tmp_path: Path, halves: Halves
) -> None:
    listed = {"skipped": [{"key": "ab" * 16, "reason": "cut"}], "skipped_files": {"empty": 2}}
    nameless = make.write(
        tmp_path / "c.h5", Table(**{**vars(table), "names": None}), Manifest(make.manifest().identity, listed)
    )
    union = open_caches([*halves, nameless])
    assert union.names is None
    assert union.manifest.skipped == {"ab" * 16: "cut"}
    assert union.manifest.skipped_files == {"empty": 2}
    assert open_caches(halves).names == table.names


def test_rows_are_not_held_in_memory(halves: Halves, monkeypatch: pytest.MonkeyPatch, make: ModuleType) -> None:
    """What the sources are asked for is what somebody asked the union for."""
    asked: list[int] = []
    read: Callable[..., np.ndarray] = CacheReader.read_object

    def counting(self: CacheReader, name: str, rows: object) -> np.ndarray:
        values = read(self, name, rows)
        if type(self) is CacheReader:
            asked.append(len(values))
        return values

    union = open_caches(halves)
    monkeypatch.setattr(CacheReader, "read_object", counting)
    union.logits([0, 5])
    union.logits([5])
    assert sum(asked) == 3
