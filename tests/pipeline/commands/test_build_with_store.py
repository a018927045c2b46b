"""`softlabel cache build --store`: what the command says of rows, and what it refuses before anything else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import CacheReader
from pipeline.build import BuildConfig

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fewer(few_images: Path, tmp_path: Path) -> Path:
    """The images without one of train, which has all views."""
    data = shutil.copytree(few_images, tmp_path / "fewer")
    next(data.glob("train/*/*.png")).unlink()
    return data


def test_a_repeated_command_tells_rows_of_before_from_those_of_now(
    few_images: Path, fewer: Path, tiny_build: BuildConfig, tmp_path: Path, cli: Cli
) -> None:
    url, words = str(tmp_path / "team"), ["--teacher", tiny_build.teacher, "--views", str(tiny_build.views)]
    assert cli("cache", "build", fewer, "-o", tmp_path / "t.h5", *words, "--store", url)[0] == 0
    n_before = CacheReader(tmp_path / "t.h5").n_rows
    code, out, err = cli("cache", "build", few_images, "-o", tmp_path / "t.h5", *words, "--store", url)
    assert code == 0, err
    assert f"({tiny_build.views} computed now in " in out
    assert f", 0 taken now from {url}, {n_before} stood before)" in out


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_who_has_no_teacher_is_told_how_to_take_the_cache_of_a_teammate(
    more: tuple[str, ...], few_images: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "team caches").mkdir()
    url, words = (
        tmp_path / "team caches",
        ("cache", "build", few_images, "-o", tmp_path / "t.h5", "--teacher", "./none"),
    )
    code, _, err = cli(*words, "--store", url, *more)
    assert code == 1
    title, *lines = err[err.index("Error: ") :].splitlines()
    assert "no such teacher folder or file: ./none" in title
    assert lines[1:] == [f"  softlabel cache list '{url}'", f"  softlabel cache pull '{url}/ID' -o OUT.h5"]
    assert "cache pull" not in cli(*words)[2]


@pytest.mark.parametrize("option", ["--yes", "--no-publish"])
def test_options_of_a_store_without_one_are_usage(option: str, few_images: Path, tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("cache", "build", few_images, "-o", tmp_path / "t.h5", option)
    assert code == 2
    assert "--yes and --no-publish go with --store URL" in err
