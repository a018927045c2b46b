"""An array of jobs: each computes its share into a file of its own, and all together are one build."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import CacheReader, durable, merge
from data.options import ScanOptions
from data.scan import scan_data
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import SettingError
from pipeline.slices import Slice, tell_of_missing_slices

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def slices(tiny_data: Path, tiny_build: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The caches of three jobs."""
    out = tmp_path_factory.mktemp("slices") / "t.h5"
    return [build_cache(tiny_data, out, tiny_build, part=Slice(number, 3)).path for number in (1, 2, 3)]


def test_all_slices_merged_in_any_order_are_the_one_build(slices: list[Path], tiny_cache: Path, tmp_path: Path) -> None:
    assert [path.name for path in slices] == ["t.1-of-3.h5", "t.2-of-3.h5", "t.3-of-3.h5"]
    assert sorted(path.name for path in slices[0].parent.iterdir()) == [path.name for path in slices]
    assert [CacheReader(path).n_samples for path in slices] == [20, 20, 20]
    whole = CacheReader(tiny_cache)
    for number in range(2):
        order = random.Random(number).sample(slices, 3)
        merged = merge(order, tmp_path / f"{number}.h5")
        assert (merged.cache_id, merged.content_id) == (whole.cache_id, whole.content_id)
        assert merged.names == whole.names


def test_a_slice_is_every_nth_image_in_the_order_of_keys(slices: list[Path], tiny_data: Path) -> None:
    keys = sorted(sample.key for sample in scan_data(tiny_data).samples)
    for number, path in enumerate(slices):
        assert list(CacheReader(path)) == keys[number::3]


def test_jobs_of_one_array_never_meet(tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path) -> None:
    """Not even where others hold their locks, or the whole cache is being built."""
    held = [durable.Lock.acquire(tmp_path / f"{name}.parts" / "lock") for name in ("t.h5", "t.2-of-3.h5")]
    try:
        assert build_cache(tiny_data, tmp_path / "t.h5", tiny_build, part=Slice(1, 3)).n_samples == 20
    finally:
        for lock in held:
            lock.release()
    assert not (tmp_path / "t.h5").exists()


def test_names_of_files_sort_and_the_pattern_finds_them(tmp_path: Path) -> None:
    parts = [Slice(number, 16) for number in (1, 10, 16)]
    names = [part.file("a folder/t.h5").name for part in parts]
    assert names == ["t.01-of-16.h5", "t.10-of-16.h5", "t.16-of-16.h5"]
    assert parts[0].every_file("a folder/t.h5") == "'a folder/t'.*-of-16.h5"
    assert Slice(1, 2).file("t") == Path("t.1-of-2")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("t.1-of-3.h5", "x/t.3-of-3.h5"), "t.2-of-3.h5, t.3-of-3.h5, x/t.1-of-3.h5 and 1 more are not among them"),
        (("t.1-of-3.h5", "t.3-of-3.h5", "other.h5"), "t.2-of-3.h5 is not among them (a slice without images has no "),
        (("t.01-of-12.h5",), "t.02-of-12.h5, t.03-of-12.h5, t.04-of-12.h5 and 8 more are not among them"),
        (("t.2-of-2", "t.1-of-2"), ""),
        (("t.1-of-12.h5", "t.0-of-3.h5", "t.4-of-3.h5", "t.h5", "1-of-3.h5", "a folder"), ""),
    ],
)
def test_slices_that_are_missing_among_files_are_told(
    files: tuple[str, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    tell_of_missing_slices([Path(file) for file in files])
    assert [message.startswith(said) for message in caplog.messages] == [True] * bool(said)


def test_a_merge_without_one_of_the_slices_says_which(cli: Cli, slices: list[Path], tmp_path: Path) -> None:
    code, _, err = cli("cache", "merge", slices[0], slices[2], "-o", tmp_path / "t.h5")
    assert code == 0, err
    assert err.strip().endswith(f"{slices[1]} is not among them (a slice without images has no file)")
    assert cli("cache", "merge", *slices, "-o", tmp_path / "all.h5")[2] == ""


def test_the_only_slice_is_told_of_in_the_singular(
    cli: Cli, few_images: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    words = ("cache", "build", few_images, "-o", tmp_path / "t.h5", "--teacher", tiny_teacher, "--slice", "1/1")
    assert "; next: `softlabel cache merge " in cli(*words)[1]


WRONG = ("0/4", "5/4", "a/b", "4", "1/0", "1/-2", "", "1/4/4", "1 / 4", "\u0661/4", "1/10000000")


@pytest.mark.parametrize("text", WRONG)
def test_anything_else_is_no_slice(text: str, cli: Cli, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"expected I/N with I in 1\.\.N, such as 1/16"):
        Slice.parse(text)
    if text in ("0/4", "a/b"):
        code, out, err = cli("cache", "build", tiny_data, "-o", tmp_path / "t.h5", "--slice", text)
        assert (code, out) == (2, "")
        (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
        assert "'--slice': slice " in line
        assert not list(tmp_path.iterdir())


def test_the_command_resumes_and_names_what_comes_next(
    cli: Cli, tiny_data: Path, tiny_teacher: Path, tmp_path: Path, tiny_cache: Path, stop_at: Callable[..., None]
) -> None:
    words = ["cache", "build", tiny_data, "-o", tmp_path / "t.h5", "--teacher", tiny_teacher, "--views", 3]
    words += ["--precision", "fp32", "--batch-size", 4, "--workers", 0, "--slice", "2/3"]
    code, out, err = cli(*words, "--dry-run", "--reuse", tiny_cache)
    assert code == 0, err
    assert "0 to compute, 4" in out
    assert f"0 stand already in {tmp_path / 't.2-of-3.h5'}" in out
    stop_at(4)
    assert cli(*words)[0] == 130
    assert (tmp_path / "t.2-of-3.h5.parts").is_dir()
    code, out, err = cli(*words)
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 't.2-of-3.h5'}: ")
    files = f"{tmp_path / 't'}.*-of-3.h5"
    merging, training = f"softlabel cache merge {files} -o {tmp_path / 't.h5'}", f"softlabel train {tiny_data} {files}"
    assert out.rstrip().endswith(f"; when all 3 stand: `{merging}`, or at once `{training} -o RUN`")
    assert [path.name for path in tmp_path.iterdir()] == ["t.2-of-3.h5"]


@pytest.mark.parametrize("out", [".", "/"])
def test_a_folder_is_no_output_of_a_slice_either(out: str, cli: Cli, few_images: Path) -> None:
    code, _, err = cli("cache", "build", few_images, "-o", out, "--slice", "1/2")
    assert code == 1
    assert err.startswith(f"Error: {out} is a folder: name the file to write")


def test_a_slice_without_images_ends_well_and_writes_nothing(
    cli: Cli, few_images: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    words = ("cache", "build", few_images, "-o", tmp_path / "t.h5", "--teacher", tiny_teacher, "--slice", "26/26")
    for more in ((), ("--dry-run",)):
        code, out, err = cli(*words, *more)
        assert code == 0, err
        assert out == f"slice 26/26 of {few_images} has no images to compute: nothing was written\n"
    assert not list(tmp_path.iterdir())


def test_a_slice_whose_only_image_is_left_out_writes_nothing_either(
    few_images: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    data = shutil.copytree(few_images, tmp_path / "images")
    path = next(data.glob("train/*/*.png"))
    path.write_bytes(path.read_bytes()[:60])
    keys = sorted(sample.key for sample in scan_data(data).samples)
    bad = next(sample.key for sample in scan_data(data).samples if sample.path == str(path))
    part = Slice(keys.index(bad) + 1, len(keys))
    result = build_cache(data, tmp_path / "t.h5", tiny_build, ScanOptions(skip_bad_images=True), part=part)
    assert (result.n_rows, result.n_skipped) == (0, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
