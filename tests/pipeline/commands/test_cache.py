"""`softlabel cache verify` and `merge`: what they say, what they refuse, and what they leave behind."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from cache import CacheReader, Table
from data.scan import scan_data
from pipeline.build import BuildConfig, build_cache

Cli = Callable[..., tuple[int, str, str]]
Resealed = Callable[..., Path]
Rows = dict[tuple[str, int], bytes]


@pytest.fixture(scope="module")
def halves(tiny_data: Path, tiny_build: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two caches: of the images with even, and with odd numbers."""
    folder = tmp_path_factory.mktemp("halves")
    for name, remainder in (("even", 0), ("odd", 1)):
        data = shutil.copytree(tiny_data, folder / name)
        for path in data.glob("*/*/*.png"):
            if int(path.stem) % 2 != remainder:
                path.unlink()
        build_cache(data, folder / f"{name}.h5", tiny_build)
    return folder / "even.h5", folder / "odd.h5"


def one_error(result: tuple[int, str, str]) -> str:
    """The message of a command that ended with exit code 1."""
    code, _, err = result
    assert code == 1, err
    assert "Traceback" not in err
    assert err.count("Error: ") == 1
    return err[err.index("Error: ") :].strip()


def nudge(row: int, by: float) -> Callable[[Table], None]:
    def change(table: Table) -> None:
        table.logits["class"][row, 0] += np.float32(by)

    return change


def test_verify_says_in_one_line_that_a_cache_is_sound(cli: Cli, tiny_cache: Path) -> None:
    said = f"{tiny_cache}: all 120 views of 60 images are as they were sealed\n"
    assert cli("cache", "verify", tiny_cache) == (0, said, "")


@pytest.mark.parametrize("name", ["logits/0", "rows/params", "rows/witness", "features/embedding"])
def test_verify_names_the_block_in_which_one_bit_is_off(
    name: str, cli: Cli, tiny_cache: Path, flipped: Callable[..., Path]
) -> None:
    with h5py.File(tiny_cache, "r", locking=False) as h5:
        n_bytes = h5[name].id.get_storage_size()
    for byte in (0, n_bytes - 1):
        damaged = flipped(tiny_cache, name, byte)
        error = one_error(cli("cache", "verify", damaged))
        assert error.startswith(f"Error: {damaged} is damaged in 1 block: {name} rows 0-119. ")
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["manifest", "samples/key", "samples/name", "rows/view", "crc32/logits/0", "seal"])
def test_verify_refuses_a_file_whose_tables_are_off(
    name: str, cli: Cli, tiny_cache: Path, flipped: Callable[..., Path]
) -> None:
    error = one_error(cli("cache", "verify", flipped(tiny_cache, name)))
    assert "is not a sound cache: its seal does not match its tables" in error
    assert len(error.splitlines()) == 1


def test_verify_names_bytes_between_the_objects_that_are_off(cli: Cli, tiny_cache: Path, resealed: Resealed) -> None:
    wide = np.ones((120, 300), "<f2")  # large enough to start on a page, which leaves a gap before it
    sound = resealed(tiny_cache, lambda table: dataclasses.replace(table, features={"embedding": wide}))
    assert cli("cache", "verify", sound)[0] == 0
    with h5py.File(sound, "r", locking=False) as h5:
        gap = h5["features/embedding"].id.get_offset() - 1
    content = bytearray(sound.read_bytes())
    assert content[gap - 9 : gap + 1] == bytes(10)
    content[gap] = 1
    sound.write_bytes(content)
    error = one_error(cli("cache", "verify", sound))
    assert re.search(rf"is damaged in 1 block: unused bytes \d+-{gap}\. ", error), error
    assert len(error.splitlines()) == 1


def test_verify_asks_the_teacher_again_and_says_the_largest_difference(
    cli: Cli, tiny_cache: Path, tiny_data: Path, tiny_teacher: Path
) -> None:
    code, out, err = cli("cache", "verify", tiny_cache, tiny_data, "--teacher", tiny_teacher, "--sample", 8)
    assert code == 0, err
    sound, computed = out.splitlines()
    assert sound.endswith("are as they were sealed")
    said = r"8 rows computed again in fp32 on cpu: largest difference of a logit (\S+), tolerance 0\.0001"
    match = re.fullmatch(said, computed)
    assert match, computed
    assert 0 <= float(match[1]) < 1e-5


def test_verify_names_the_image_whose_stored_answer_is_not_the_teachers(
    cli: Cli, tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, resealed: Resealed
) -> None:
    sample, reader = scan_data(tiny_data).of_split("val")[4], CacheReader(tiny_cache)
    other = resealed(tiny_cache, nudge(reader.rows_of(int(reader.find([sample.key])[0])).start, 0.5))
    assert cli("cache", "verify", other)[0] == 0
    result = cli("cache", "verify", other, tiny_data, "--teacher", tiny_teacher, "--sample", 200)
    assert "largest difference of a logit 0.5, tolerance 0.0001" in result[1]
    error = one_error(result)
    assert sample.path in error
    assert len(error.splitlines()) == 1


def test_verify_refuses_another_teacher_and_lists_what_differs(
    cli: Cli, tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_teacher, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({**weights, "logit_bias": weights["logit_bias"] + 1}, other / "model.safetensors", {"format": "pt"})
    title, *lines = one_error(cli("cache", "verify", tiny_cache, tiny_data, "--teacher", other)).splitlines()
    assert f"{other} is not the teacher of {tiny_cache}" in title
    assert [line.split(":")[0].strip() for line in lines] == ["teacher.logit_bias", "teacher.weights_sha256"]


def test_verify_of_other_images_says_that_it_knows_none(
    cli: Cli, tiny_cache: Path, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "images")
    for path in data.glob("*/*/*.png"):
        path.write_bytes(path.read_bytes() + b"\0")
    error = one_error(cli("cache", "verify", tiny_cache, data, "--teacher", tiny_teacher))
    assert "knows none of the 60 images" in error


@pytest.mark.parametrize("words", [("--teacher", "T"), ("DATA",)])
def test_verify_with_a_teacher_or_images_alone_is_usage(cli: Cli, tiny_cache: Path, words: tuple[str, ...]) -> None:
    code, out, err = cli("cache", "verify", tiny_cache, *words)
    assert (code, out) == (2, "")
    assert "--teacher and DATA go together" in err


def test_merge_of_two_halves_is_the_whole(
    cli: Cli, halves: tuple[Path, Path], tiny_cache: Path, tmp_path: Path, rows_of: Callable[[Path], Rows]
) -> None:
    before = [half.read_bytes() for half in halves]
    code, out, err = cli("cache", "merge", *halves, "-o", tmp_path / "c.h5")
    assert code == 0, err
    assert out == f"{tmp_path / 'c.h5'}: 120 views of 60 images\n"
    assert rows_of(tmp_path / "c.h5") == rows_of(tiny_cache)
    merged, whole = CacheReader(tmp_path / "c.h5"), CacheReader(tiny_cache)
    assert (merged.content_id, merged.cache_id) == (whole.content_id, whole.cache_id)
    assert merged.names == whole.names
    assert [half.read_bytes() for half in halves] == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.h5"]


def test_merge_leaves_an_output_that_exists_alone(cli: Cli, halves: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "c.h5").write_text("mine")
    assert "c.h5 exists already" in one_error(cli("cache", "merge", *halves, "-o", tmp_path / "c.h5"))
    assert (tmp_path / "c.h5").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["c.h5"]


def test_merge_of_other_recipes_lists_every_field_and_writes_nothing(
    cli: Cli, halves: tuple[Path, Path], resealed: Resealed, tmp_path: Path
) -> None:
    identity = CacheReader(halves[1]).manifest.identity
    teacher = {**identity["teacher"], "weights_sha256": "00"}
    other = resealed(halves[1], identity={"teacher": teacher, "views": {**identity["views"], "seed": "7"}})
    result = cli("cache", "merge", halves[0], other, "-o", tmp_path / "c.h5")
    title, *lines = one_error(result).splitlines()
    assert "are of other recipes" in title
    assert [line.split(":")[0].strip() for line in lines] == ["teacher.weights_sha256", "views.seed"]
    assert list(tmp_path.iterdir()) == [other]


def test_merge_of_answers_that_contradict_each_other_writes_nothing(
    cli: Cli, halves: tuple[Path, Path], tiny_cache: Path, resealed: Resealed, tmp_path: Path
) -> None:
    other = resealed(tiny_cache, nudge(17, 0.01))
    for sources in ([tiny_cache, other], [*halves, other]):
        error = one_error(cli("cache", "merge", *sources, "-o", tmp_path / "c.h5"))
        assert f"{other} and an earlier source disagree in logits/0 in 1 of " in error
        assert list(tmp_path.iterdir()) == [other]


def test_merge_takes_the_parts_of_an_interrupted_build(
    cli: Cli, stop_at: Callable[..., None], halves: tuple[Path, Path], tiny_data: Path, tiny_build: BuildConfig,
    tiny_cache: Path, tmp_path: Path, rows_of: Callable[[Path], Rows],
) -> None:  # fmt: skip
    stop_at(15)
    with pytest.raises(KeyboardInterrupt):
        build_cache(tiny_data, tmp_path / "t.h5", tiny_build)
    parts = tmp_path / "t.h5.parts"
    before = {path: path.read_bytes() for path in parts.iterdir()}
    code, out, err = cli("cache", "merge", parts, "-o", tmp_path / "some.h5")
    assert code == 0, err
    some, whole = rows_of(tmp_path / "some.h5"), rows_of(tiny_cache)
    assert 40 < len(some) < 60
    assert some.items() <= whole.items()
    assert out == f"{tmp_path / 'some.h5'}: {len(some)} views of {len({key for key, _ in some})} images\n"
    assert {path: path.read_bytes() for path in parts.iterdir()} == before
    assert cli("cache", "merge", parts, *halves, "-o", tmp_path / "all.h5")[0] == 0
    assert rows_of(tmp_path / "all.h5") == whole


def test_merge_of_a_folder_without_caches_says_so(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = one_error(cli("cache", "merge", tmp_path / "empty", "-o", tmp_path / "c.h5"))
    assert "empty is a folder without caches" in error


def test_merge_on_a_full_disk_leaves_nothing_and_names_the_line_that_repeats_it(
    cli: Cli, halves: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    file_limit: Callable[[int], AbstractContextManager[None]],
) -> None:  # fmt: skip
    words = ["cache", "merge", *map(str, halves), "-o", str(tmp_path / "c.h5")]
    monkeypatch.setattr(sys, "argv", ["softlabel", *words])
    with file_limit(10_000):
        error = one_error(cli(*words))
    assert re.search(r"no room for [\d,]{5,} bytes in ", error)
    assert error.splitlines()[-1].strip() == "softlabel " + " ".join(words)
    assert list(tmp_path.iterdir()) == []
    assert cli(*words)[0] == 0


def test_questions_write_nothing_into_an_unsplit_folder(
    cli: Cli, tiny_data: Path, tiny_cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_data / "train", tmp_path / "images")
    before = sorted(data.rglob("*"))
    code, _, err = cli("cache", "build", data, "-o", tmp_path / "t.h5", "--teacher", tiny_teacher, "--dry-run")
    assert code == 0, err
    assert "would be split by class and saved in" in err
    assert cli("cache", "info", tiny_cache, "--data", data)[0] == 0
    assert sorted(data.rglob("*")) == before


def test_a_cache_whose_build_was_interrupted_is_not_called_missing(cli: Cli, tiny_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "t.h5.parts").mkdir()
    shutil.copy(tiny_cache, tmp_path / "t.h5.parts" / "part.h5")
    code, _, err = cli("cache", "info", tmp_path / "t.h5")
    assert code == 1
    assert "t.h5 is not finished, its parts stand beside it: repeat its `softlabel cache build DATA -o " in err
