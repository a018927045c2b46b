"""A build with a store computes what nobody has paid for yet, and puts there what the store lacked."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache import CacheReader
from cache.adopt import copy_rows
from cache.store import Stood, Store, StoreError
from pipeline.build import BuildConfig, BuildResult, build_cache
from pipeline.slices import Slice
from pipeline.teachers import known

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A folder that a team shares."""
    return Store(str(tmp_path / "team"))


@pytest.fixture
def fewer(few_images: Path, tmp_path: Path) -> Path:
    """The images without one of train, which has all views, under other names."""
    data = shutil.copytree(few_images, tmp_path / "fewer")
    first, *others = sorted(data.glob("train/*/*.png"))
    first.unlink()
    for number, path in enumerate(others):
        path.rename(path.with_name(f"mine-{number}.png"))
    return data


@pytest.fixture
def whole(few_images: Path, tiny_build: BuildConfig, tmp_path: Path) -> CacheReader:
    """What a build without a store makes of all images."""
    return CacheReader(build_cache(few_images, tmp_path / "whole.h5", tiny_build).path)


def built(data: Path, out: Path, config: BuildConfig, store: Store) -> tuple[BuildResult, CacheReader]:
    result = build_cache(data, out, config, store=store)
    return result, CacheReader(out)


def test_a_build_pulls_what_a_teammate_paid_for_and_never_loads_a_teacher_that_is_known(
    few_images: Path, tiny_build: BuildConfig, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    forward_rows: list[int], whole: CacheReader,
) -> None:  # fmt: skip
    monkeypatch.setattr(known, "_RACY_S", -60.0)
    first, _ = built(few_images, tmp_path / "ann.h5", tiny_build, store)
    assert (first.n_pulled, first.n_computed) == (0, whole.n_rows)
    assert first.pushed is not None
    assert first.pushed.is_new
    build_cache(few_images, tmp_path / "remembers.h5", tiny_build, known_teachers=tmp_path / "teachers")
    forward_rows.clear()
    monkeypatch.setattr("pipeline.on_demand.load_teacher", lambda *words: pytest.fail("the teacher was loaded"))
    second = build_cache(
        few_images, tmp_path / "bo.h5", tiny_build, store=store, known_teachers=tmp_path / "teachers"
    )  # fmt: skip
    assert (second.n_pulled, second.n_computed, second.pushed, forward_rows) == (whole.n_rows, 0, None, [])
    pulled = CacheReader(tmp_path / "bo.h5")
    assert (pulled.content_id, pulled.names) == (whole.content_id, None)
    assert sorted(path.name for path in tmp_path.glob("bo*")) == ["bo.h5"]


def test_only_the_rows_that_the_store_lacks_are_computed_and_put_there(
    few_images: Path, fewer: Path, tiny_build: BuildConfig, store: Store, tmp_path: Path, forward_rows: list[int],
    whole: CacheReader,
) -> None:  # fmt: skip
    built(fewer, tmp_path / "ann.h5", tiny_build, store)
    forward_rows.clear()
    result, extended = built(few_images, tmp_path / "bo.h5", tiny_build, store)
    assert (result.n_pulled, result.n_computed) == (whole.n_rows - tiny_build.views, tiny_build.views)
    assert sum(forward_rows) == tiny_build.views
    assert extended.content_id == whole.content_id
    assert extended.names == whole.names
    assert result.pushed is not None
    assert result.pushed.entry.n_rows == tiny_build.views
    third, _ = built(few_images, tmp_path / "cy.h5", tiny_build, store)
    assert (third.n_pulled, third.n_computed, third.pushed) == (whole.n_rows, 0, None)
    assert CacheReader(tmp_path / "cy.h5").content_id == whole.content_id
    assert sorted(path.name for path in tmp_path.glob("[bc][oy]*")) == ["bo.h5", "cy.h5"]


def test_of_a_larger_cache_only_the_wanted_rows_are_taken(
    few_images: Path, fewer: Path, tiny_build: BuildConfig, store: Store, tmp_path: Path
) -> None:
    built(few_images, tmp_path / "ann.h5", dataclasses.replace(tiny_build, views=tiny_build.views + 2), store)
    result, reader = built(fewer, tmp_path / "bo.h5", tiny_build, store)
    alone = CacheReader(build_cache(fewer, tmp_path / "alone.h5", tiny_build).path)
    assert (result.n_pulled, result.n_computed, result.pushed) == (alone.n_rows, 0, None)
    assert (reader.content_id, reader.names) == (alone.content_id, alone.names)


def test_a_cache_that_stood_before_is_extended_from_the_store_and_shared(
    few_images: Path, fewer: Path, tiny_build: BuildConfig, store: Store, tmp_path: Path, whole: CacheReader
) -> None:
    mine = CacheReader(build_cache(fewer, tmp_path / "bo.h5", tiny_build).path)
    new = tmp_path / "new.h5"
    rows = np.flatnonzero(mine.row(mine.find(whole.keys)[whole.sample_of_row], whole.view) < 0)
    copy_rows(new, whole, rows, None)
    store.push(new)
    result, reader = built(few_images, mine.path, tiny_build, store)
    assert (result.n_pulled, result.n_computed) == (tiny_build.views, 0)
    assert reader.content_id == whole.content_id
    assert result.pushed is not None
    assert sorted(entry.n_rows for entry in store.entries(whole.recipe_id)) == [tiny_build.views, mine.n_rows]


def test_nothing_is_put_there_with_no_publish(
    few_images: Path, tiny_build: BuildConfig, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="there is no folder"):
        build_cache(few_images, tmp_path / "t.h5", tiny_build, store=store, publish=False)
    (tmp_path / "team").mkdir()
    assert build_cache(few_images, tmp_path / "t.h5", tiny_build, store=store, publish=False).pushed is None
    assert store.entries() == []


def test_another_recipe_or_other_features_are_of_no_use(
    few_images: Path, tiny_build: BuildConfig, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built(few_images, tmp_path / "ann.h5", tiny_build, store)
    reseeded = dataclasses.replace(tiny_build, seed=tiny_build.seed + 1)
    assert built(few_images, tmp_path / "reseeded.h5", reseeded, store)[0].n_pulled == 0
    bare = dataclasses.replace(tiny_build, embedding=False)
    with caplog.at_level(logging.INFO):
        assert built(few_images, tmp_path / "bare.h5", bare, store)[0].n_pulled == 0
    assert "1 of 1 caches of this recipe have other features" in caplog.text


def test_a_spoilt_object_is_told_and_its_rows_are_computed(
    few_images: Path, tiny_build: BuildConfig, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    whole: CacheReader,
) -> None:  # fmt: skip
    built(few_images, tmp_path / "ann.h5", tiny_build, store)
    (data,) = (tmp_path / "team").glob("*/*.h5")
    data.chmod(0o644)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    result, reader = built(few_images, tmp_path / "bo.h5", tiny_build, store)
    assert (result.n_pulled, result.n_computed) == (0, whole.n_rows)
    assert reader.content_id == whole.content_id
    assert "going on without it" in caplog.text
    assert result.pushed is not None
    assert (result.pushed.is_new, result.pushed.stood) == (True, Stood.DAMAGED)
    others, _ = built(few_images, tmp_path / "cy.h5", tiny_build, Store(str(tmp_path / "team")))
    assert (others.n_pulled, others.n_computed) == (whole.n_rows, 0)


def test_a_cache_that_could_not_be_shared_is_complete(
    few_images: Path, tiny_build: BuildConfig, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    whole: CacheReader,
) -> None:  # fmt: skip
    def refuse(self: Store, path: Path) -> None:
        raise StoreError("the store is full")

    monkeypatch.setattr(Store, "push", refuse)
    said = r"bo.h5 is complete, but .* not shared: the store is full\nTry: softlabel cache push "
    with pytest.raises(StoreError, match=said):
        built(few_images, tmp_path / "bo.h5", tiny_build, store)
    assert CacheReader(tmp_path / "bo.h5").content_id == whole.content_id
    monkeypatch.undo()
    again, _ = built(few_images, tmp_path / "bo.h5", tiny_build, store)
    assert again.n_computed == 0
    assert again.pushed is not None


def test_the_slices_of_an_array_meet_in_the_store(
    few_images: Path, tiny_build: BuildConfig, store: Store, tmp_path: Path, whole: CacheReader
) -> None:
    for number in (1, 2, 3):
        build_cache(few_images, tmp_path / "t.h5", tiny_build, store=store, part=Slice(number, 3))
    result, reader = built(few_images, tmp_path / "bo.h5", tiny_build, store)
    assert (result.n_pulled, result.n_computed, result.pushed) == (whole.n_rows, 0, None)
    assert reader.content_id == whole.content_id


def test_the_command_says_what_came_from_the_store_and_what_went_there(
    few_images: Path, fewer: Path, tiny_build: BuildConfig, tmp_path: Path, cli: Cli
) -> None:
    url, views = str(tmp_path / "team"), str(tiny_build.views)
    words = ["--teacher", tiny_build.teacher, "--views", views, "--store", url]
    code, out, err = cli("cache", "build", fewer, "-o", tmp_path / "ann.h5", *words)
    assert code == 0, err
    assert f"0 from {url})" in out
    assert out.splitlines()[1].startswith(f"{url}: ")
    code, out, err = cli("cache", "build", few_images, "-o", tmp_path / "plan.h5", *words, "--dry-run")
    assert code == 0, err
    n_pulled = CacheReader(tmp_path / "ann.h5").n_rows
    assert f"{views} to compute, {n_pulled} to take from {url}, 0 stand already" in out
    code, out, err = cli("cache", "build", few_images, "-o", tmp_path / "bo.h5", *words)
    assert code == 0, err
    assert f"({views} computed now in" in out
    assert f", {n_pulled} from {url})\n{url}: {views} views put there" in out


def test_a_store_that_is_a_file_is_told_before_anything_is_computed(
    few_images: Path, tiny_build: BuildConfig, tmp_path: Path, cli: Cli, forward_rows: list[int]
) -> None:
    (tmp_path / "team").write_text("")
    for store in (tmp_path / "team", tmp_path / "team" / "caches"):
        for words in (["--store", store], ["--store", store, "--no-publish"]):
            out = tmp_path / "t.h5"
            code, _, err = cli("cache", "build", few_images, "-o", out, "--teacher", tiny_build.teacher, *words)
            assert (code, forward_rows) == (1, [])
            assert "team is a file, not a folder" in err


def test_a_folder_that_takes_no_files_is_told_before_anything_is_computed(
    few_images: Path, tiny_build: BuildConfig, tmp_path: Path, cli: Cli, forward_rows: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    team = tmp_path / "team"
    team.mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: path != team and allowed(path, mode, **more))
    words = ["cache", "build", few_images, "-o", tmp_path / "t.h5", "--teacher", tiny_build.teacher, "--store", team]
    code, _, err = cli(*words)
    assert (code, forward_rows) == (1, [])
    assert f"the folder {team} cannot be written" in err
    assert cli(*words, "--no-publish")[0] == 0


def test_a_remote_store_wants_a_yes_before_anything_is_computed(
    few_images: Path, tiny_build: BuildConfig, tmp_path: Path, cli: Cli, forward_rows: list[int]
) -> None:
    words = ["--teacher", tiny_build.teacher, "--store", "s3://nobodys/caches"]
    code, _, err = cli("cache", "build", few_images, "-o", tmp_path / "t.h5", *words)
    assert (code, forward_rows) == (1, [])
    assert "needs a yes once" in err
    assert "--no-publish to pull alone" in err
