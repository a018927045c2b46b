"""A build with `--reuse` computes what no cache has yet, row by row, and says what it took."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import CacheReader
from cache.errors import CacheMismatch
from data import reading
from data.scan import scan_data
from pipeline import build as module
from pipeline.build import BuildConfig, build_cache
from pipeline.dry_run import plan_build
from pipeline.errors import OutOfMemory, SettingError

Cli = Callable[..., tuple[int, str, str]]
RowsOf = Callable[[Path], dict[tuple[str, int], bytes]]


@pytest.fixture
def fewer(tiny_data: Path, tmp_path: Path) -> Path:
    """The images without those of number 3."""
    data = shutil.copytree(tiny_data, tmp_path / "fewer")
    for path in data.glob("*/*/00003.png"):
        path.unlink()
    return data


@pytest.fixture
def old(fewer: Path, tiny_build: BuildConfig, tmp_path: Path) -> Path:
    """Their cache."""
    return build_cache(fewer, tmp_path / "old.h5", tiny_build).path


def n_new(tiny_data: Path) -> dict[str, int]:
    """Images of number 3, by split."""
    return {split: len(list((tiny_data / split).glob("*/00003.png"))) for split in ("train", "val", "test")}


def test_images_that_were_added_cost_their_own_rows_and_no_other(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, old: Path, tmp_path: Path, forward_rows: list[int],
    rows_of: RowsOf,
) -> None:  # fmt: skip
    before, new = old.read_bytes(), n_new(tiny_data)
    result = build_cache(tiny_data, tmp_path / "t.h5", tiny_build, reuse=[old])
    expected = 3 * new["train"] + new["val"] + new["test"]
    assert expected == 15
    assert (sum(forward_rows), result.n_computed) == (expected, expected)
    assert [(one.path, one.n_rows) for one in result.reused] == [(old, 120 - expected)]
    assert rows_of(result.path) == rows_of(tiny_cache)
    assert CacheReader(result.path).content_id == CacheReader(tiny_cache).content_id
    assert CacheReader(result.path).names == CacheReader(tiny_cache).names
    assert old.read_bytes() == before


def test_more_views_cost_the_new_ones(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path, forward_rows: list[int]
) -> None:
    config = dataclasses.replace(tiny_build, views=5)
    result = build_cache(tiny_data, tmp_path / "t.h5", config, reuse=[tiny_cache])
    assert (sum(forward_rows), result.n_computed, result.n_rows) == (30 * 2, 30 * 2, 120 + 30 * 2)


def test_where_everything_is_there_no_image_is_decoded_and_the_teacher_is_not_asked(
    fewer: Path, tiny_build: BuildConfig, tiny_cache: Path, old: Path, tmp_path: Path, forward_rows: list[int],
    monkeypatch: pytest.MonkeyPatch, rows_of: RowsOf,
) -> None:  # fmt: skip
    monkeypatch.setattr(reading, "decode", lambda *_: pytest.fail("an image was decoded"))
    monkeypatch.setattr(module, "find_bad_files", lambda samples, checked: pytest.fail("looked at") if samples else [])
    result = build_cache(fewer, tmp_path / "t.h5", tiny_build, reuse=[tiny_cache])
    assert (forward_rows, result.n_computed) == ([], 0)
    assert rows_of(result.path) == rows_of(old)
    provenance = CacheReader(result.path).manifest.provenance
    assert provenance["compute"] == CacheReader(tiny_cache).manifest.provenance["compute"]


def test_several_caches_are_asked_in_their_order_and_the_output_keeps_its_own(
    tiny_data: Path, fewer: Path, tiny_build: BuildConfig, tiny_cache: Path, old: Path, tmp_path: Path,
    forward_rows: list[int], rows_of: RowsOf,
) -> None:  # fmt: skip
    out = build_cache(fewer, tmp_path / "t.h5", dataclasses.replace(tiny_build, views=1)).path
    forward_rows.clear()
    result = build_cache(tiny_data, out, tiny_build, reuse=[out.with_name("old.h5"), tiny_cache, old])
    assert forward_rows == []
    assert [(one.path, one.n_rows) for one in result.reused] == [(old, 25 * 2), (tiny_cache, 15)]
    assert rows_of(out) == rows_of(tiny_cache)


@pytest.mark.parametrize(("stored", "asked"), [(True, False), (False, True)])
def test_names_are_those_of_data_whatever_the_other_cache_has(
    stored: bool, asked: bool, tiny_data: Path, tiny_build: BuildConfig, fewer: Path, tmp_path: Path
) -> None:
    old = build_cache(fewer, tmp_path / "old.h5", dataclasses.replace(tiny_build, views=1, names=stored)).path
    for path in tiny_data.glob("*/*/00002.png"):
        shutil.copy(path, fewer / path.parent.relative_to(tiny_data) / "renamed.png")
        (fewer / path.relative_to(tiny_data)).unlink()
    out = build_cache(
        fewer, tmp_path / "t.h5", dataclasses.replace(tiny_build, views=1, names=asked), reuse=[old]
    ).path  # fmt: skip
    of_data = [sample.name for sample in sorted(scan_data(fewer).samples, key=lambda sample: sample.key)]
    assert CacheReader(out).names == (of_data if asked else None)


def test_the_command_says_what_it_took_and_its_dry_run_says_so_before(
    cli: Cli, tiny_data: Path, tiny_teacher: Path, old: Path, tmp_path: Path
) -> None:
    words = ("cache", "build", tiny_data, "-o", tmp_path / "t.h5", "--teacher", tiny_teacher, "--views", 3)
    words = (*words, "--precision", "fp32", "--batch-size", 4, "--workers", 0, "--reuse", old)
    code, out, err = cli(*words, "--dry-run")
    assert code == 0, err
    assert f"views       15 to compute, 105 to take from {old}, 0 stand already in {tmp_path / 't.h5'}" in out
    assert "passes, the cache 120: " in out
    assert not (tmp_path / "t.h5").exists()
    code, out, err = cli(*words)
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 't.h5'}: 120 views of 60 images (15 computed now in ")
    assert out.rstrip().endswith(f", 105 taken from {old})")
    assert f"105 views of {old}" in err
    assert "15 views to compute, 105 stand already" in err


def test_caches_that_do_not_fit_are_refused_before_anything_is_done(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, old: Path, tmp_path: Path,
    resealed: Callable[..., Path], forward_rows: list[int], flipped: Callable[..., Path],
) -> None:  # fmt: skip
    identity = CacheReader(tiny_cache).manifest.identity
    other = resealed(tiny_cache, identity={"precision": "bf16", "views": {**identity["views"], "seed": "7"}})
    bare = build_cache(tiny_data, tmp_path / "bare.h5", dataclasses.replace(tiny_build, views=1, embedding=False)).path
    forward_rows.clear()
    out, before = tmp_path / "t.h5", sorted(tmp_path.iterdir())
    with pytest.raises(CacheMismatch, match=rf"{other} is of another recipe than this build, with ano") as caught:
        build_cache(tiny_data, out, tiny_build, reuse=[old, other])
    title, *lines = str(caught.value).splitlines()
    assert f"leave out --reuse {other}" in title
    assert [line.split(":")[0].strip() for line in lines] == ["precision", "views.seed"]
    with pytest.raises(SettingError, match=rf"{bare} have no embeddings: .* with --no-embedding, or leave out --reuse"):
        build_cache(tiny_data, out, tiny_build, reuse=[bare])
    with pytest.raises(CacheMismatch, match=rf"--reuse {old} is the output itself"):
        build_cache(tiny_data, old, tiny_build, reuse=[old])
    damaged = flipped(tiny_cache, "features/embedding")
    with pytest.raises(ValueError, match=rf"{damaged} is damaged in 1 block.*`softlabel cache repair {damaged} DATA"):
        build_cache(tiny_data, out, tiny_build, reuse=[damaged])
    with pytest.raises(ValueError, match=rf"{damaged} is damaged in 1 block.*`softlabel cache repair {damaged} DATA"):
        plan_build(tiny_data, out, tiny_build, reuse=[damaged])
    assert sorted(tmp_path.iterdir()) == sorted([*before, damaged])
    assert forward_rows == []


def test_rows_that_were_computed_in_another_way_are_told_of(
    tiny_data: Path, tiny_build: BuildConfig, old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(tiny_build, batch_size=7)
    out = build_cache(tiny_data, tmp_path / "t.h5", config, reuse=[old]).path
    (warning,) = [message for message in caplog.messages if "computed in another way" in message]
    assert "rows_per_forward: 4 against 7" in warning
    assert CacheReader(out).manifest.provenance["compute"]["rows_per_forward"] == 7
    caplog.clear()
    build_cache(tiny_data, tmp_path / "all.h5", config, reuse=[out])
    assert not [message for message in caplog.messages if "computed in another way" in message]


def test_a_batch_that_is_too_large_is_halved_although_rows_were_taken(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, old: Path, tmp_path: Path, stop_at: Callable[..., None],
    rows_of: RowsOf,
) -> None:  # fmt: skip
    stop_at(1, OutOfMemory)
    result = build_cache(tiny_data, tmp_path / "t.h5", dataclasses.replace(tiny_build, batch_size=8), reuse=[old])
    assert [one.n_rows for one in result.reused] == [105]
    assert CacheReader(result.path).manifest.provenance["compute"]["rows_per_forward"] == 4
    assert rows_of(result.path) == rows_of(tiny_cache)


def test_an_interrupted_build_goes_on_after_what_it_took(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, old: Path, tmp_path: Path, stop_at: Callable[..., None],
    rows_of: RowsOf,
) -> None:  # fmt: skip
    stop_at(3)
    with pytest.raises(KeyboardInterrupt):
        build_cache(tiny_data, tmp_path / "t.h5", tiny_build, reuse=[old])
    result = build_cache(tiny_data, tmp_path / "t.h5", tiny_build, reuse=[old])
    assert result.reused == ()
    assert 0 < result.n_computed < 15
    assert rows_of(result.path) == rows_of(tiny_cache)
