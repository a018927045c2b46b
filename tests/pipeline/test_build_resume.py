"""A build that was stopped goes on, whatever changed meanwhile, and ends in the rows of an undisturbed one."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import CacheReader
from data.options import ScanOptions
from pipeline import build as module
from pipeline.build import BuildConfig, build_cache

Rows = dict[tuple[str, int], bytes]
RowsOf = Callable[[Path], Rows]
StopAt = Callable[..., None]


class Killed(BaseException):
    """Nothing answers it: only what is sealed on the disk is left, as after a kill."""


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed every 16 rows, so that a kill in the middle of 120 leaves some and loses some."""
    monkeypatch.setattr(module, "SegmentedWriter", functools.partial(module.SegmentedWriter, segment_rows=16))


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the images, to be changed."""
    return shutil.copytree(tiny_data, tmp_path / "images")


def stopped(data: Path, out: Path, config: BuildConfig, error: type[BaseException]) -> None:
    """A build up to where `stop_at` stops it; images that are no whole ones yet are left out."""
    with pytest.raises(error):
        build_cache(data, out, config, ScanOptions(skip_bad_images=True))
    assert not out.exists()
    assert list(out.with_name("t.h5.parts").glob("*.h5"))


def assert_finished(out: Path, expected: Path, rows_of: RowsOf) -> None:
    assert rows_of(out) == rows_of(expected)
    assert CacheReader(out).content_id == CacheReader(expected).content_id
    assert CacheReader(out).names == CacheReader(expected).names
    assert not out.with_name("t.h5.parts").exists()


CHANGES = ("nothing", "images were added", "an image was repaired", "another batch size")
# Starting a worker takes seconds: once is enough.
CASES = [
    (change, *stop) for change in CHANGES for stop in ((8, KeyboardInterrupt), (29, KeyboardInterrupt), (29, Killed))
]
CASES += [("other workers", 29, Killed)]


@pytest.mark.parametrize(("changed", "n_passes", "error"), CASES)
def test_a_stopped_build_ends_in_the_rows_of_an_undisturbed_one(
    changed: str, n_passes: int, error: type[BaseException], data: Path, tiny_build: BuildConfig, tiny_cache: Path,
    tmp_path: Path, stop_at: StopAt, rows_of: RowsOf,
) -> None:  # fmt: skip
    out, config = tmp_path / "t.h5", tiny_build
    kept = {path: path.read_bytes() for path in sorted(data.glob("*/*/00001.png"))}
    for path in kept:
        if changed == "images were added":
            path.unlink()
        elif changed == "an image was repaired":
            path.write_bytes(kept[path][: len(kept[path]) // 2])
    has_all = all(path.exists() and path.read_bytes() == content for path, content in kept.items())
    n_passes = n_passes if has_all else n_passes * 2 // 3
    stop_at(n_passes, error)
    stopped(data, out, config, error)
    for path, content in kept.items():
        path.write_bytes(content)
    if changed == "another batch size":
        config = dataclasses.replace(config, batch_size=7)
    elif changed == "other workers":
        config = dataclasses.replace(config, workers=1)
    resumed = build_cache(data, out, config)
    # Lost are the rows of a sample that was half computed and, by a kill, of an unfinished segment.
    assert resumed.n_computed <= 120 - 4 * (n_passes - 1) + 2 + (15 if error is Killed else 0)
    assert_finished(out, tiny_cache, rows_of)


def test_a_build_that_is_killed_again_and_again_gets_there(
    tiny_data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path, stop_at: StopAt, rows_of: RowsOf
) -> None:
    out, n_kills = tmp_path / "t.h5", 0
    while not out.exists():
        assert n_kills < 10
        stop_at(9, Killed)
        try:
            build_cache(tiny_data, out, tiny_build)
        except Killed:
            n_kills += 1
    assert n_kills >= 3
    assert_finished(out, tiny_cache, rows_of)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed])
def test_images_removed_meanwhile_may_stay_and_change_no_row_of_the_others(
    error: type[BaseException], data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path, stop_at: StopAt,
    rows_of: RowsOf,
) -> None:  # fmt: skip
    out = tmp_path / "t.h5"
    stop_at(15, error)
    stopped(data, out, tiny_build, error)
    for path in data.glob("*/*/00001.png"):
        path.unlink()
    build_cache(data, out, tiny_build)
    remaining = build_cache(data, tmp_path / "remaining.h5", tiny_build).path
    assert rows_of(remaining).items() <= rows_of(out).items() <= rows_of(tiny_cache).items()
    assert len(rows_of(remaining)) == 120 - 5 * (3 + 1 + 1)


def test_an_image_that_was_skipped_and_repaired_joins_the_others(
    data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path, rows_of: RowsOf
) -> None:
    out, path = tmp_path / "t.h5", next(data.glob("train/*/00002.png"))
    content = path.read_bytes()
    path.write_bytes(content[:100])
    assert build_cache(data, out, tiny_build, ScanOptions(skip_bad_images=True)).n_skipped == 1
    path.write_bytes(content)
    extended = build_cache(data, out, tiny_build)
    assert (extended.n_computed, extended.n_skipped) == (3, 0)
    assert_finished(out, tiny_cache, rows_of)
