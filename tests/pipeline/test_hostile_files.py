"""Odd, broken and hostile files through both stages: told all at once, then left out by every command alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache import CacheReader
from cache.errors import printable

from ..data.hostile_files import FINE, SEVERAL, write_hostile_files

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(few_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with one of each kind of odd file in train and in test."""
    return shutil.copytree(few_images, tmp_path_factory.mktemp("hostile") / "images")


@pytest.fixture(scope="module")
def bad(data: Path) -> dict[str, str]:
    """Path of each bad file -> a regular expression for its reason."""
    said = {}
    for seed, split in enumerate(("train", "test")):
        said |= write_hostile_files(data / split / "melanoma", seed)
    return {path: reason for path, reason in said.items() if reason not in (FINE, SEVERAL)}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture
def build(data: Path, bad: dict[str, str], tiny_teacher: Path, out: Path, cli: Cli) -> Callable[..., Any]:
    words = ("cache", "build", data, "-o", out / "t.h5", "--teacher", tiny_teacher, "--views", 2, "--workers", 0)
    return lambda *more: cli(*words, *more)


def test_a_build_tells_all_of_them_in_one_message_and_writes_nothing(
    build: Callable[..., Any], bad: dict[str, str], out: Path
) -> None:
    for more in ((), ("--dry-run",)):
        code, _, err = build(*more)
        assert code == 1
        assert "Traceback" not in err
        _, _, message = err.partition("Error: ")
        title, *lines = message.splitlines()
        assert title.startswith(f"{len(bad)} of ")
        assert "images cannot be read or decoded" in title
        assert "--skip-bad-images" in title
        paths = [line.split(": ")[0].strip() for line in lines]
        assert sorted(paths) == sorted(printable(path) for path in bad)
        assert "\x1b" not in err
        assert list(out.iterdir()) == []


def test_with_the_flag_all_commands_leave_out_the_same_ones(
    build: Callable[..., Any], data: Path, bad: dict[str, str], out: Path, cli: Cli
) -> None:
    code, said, err = build("--skip-bad-images")
    assert code == 0, err
    assert said.strip().endswith(f", {len(bad)} images left out")
    assert "10 images have several frames or pages: of each the first is used" in err
    manifest = CacheReader(out / "t.h5").manifest
    n_files = sum(manifest.skipped_files.values())
    assert len(manifest.skipped) + n_files == len(bad)
    assert manifest.skipped_files["a link to nothing"] == 4
    told = json.dumps(manifest.provenance)
    assert not [path for path in bad if Path(path).suffix and json.dumps(Path(path).name)[1:-1] in told]
    assert not [word for word in (str(data), "melanoma/") if word in told]

    code, said, _ = cli("cache", "info", out / "t.h5")
    assert f"left out    {len(bad)} images that could not be read or decoded\n" in said
    assert "            4: a link to nothing\n" in said
    assert json.loads(cli("cache", "info", out / "t.h5", "--json")[1])["skipped_by_reason"]["a link to nothing"] == 4

    student = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1, "--workers", 0)
    code, _, err = cli("train", data, out / "t.h5", "-o", out / "run", *student, "--anyway")
    assert code == 0, err
    assert f"{n_files} of " in err
    assert "images cannot be decoded and are left out" in err
    code, said, err = cli("evaluate", out / "run", data, "--workers", 0)
    assert code == 0, err
    assert f"{n_files} of " in err
    assert f"{len(manifest.skipped) // 2} images of test cannot be decoded and are left out" in err

    (data / "test" / "melanoma" / "one more.png").write_bytes(b"")
    code, _, err = cli("train", data, out / "t.h5", "-o", out / "other", *student)
    assert (code, f"{n_files + 1} of " in err, "--skip-bad-images" in err) == (1, True, True)
    code, _, err = cli("evaluate", out / "run", data, "--workers", 0)
    assert (code, f"{n_files + 1} of " in err, "--skip-bad-images" in err) == (1, True, True)
