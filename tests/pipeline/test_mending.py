"""Damaged blocks are computed again from image and teacher, and the file is whole again, bit for bit, or as it was."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import cache.layout
import cache.mend
import cache.verify
from cache import CacheReader, Table
from cache.errors import CacheBusy, CacheDamaged, CacheDiskFull, CacheMismatch
from cache.workspace import Workspace
from data import reading
from data.errors import BadImage
from data.options import ScanOptions
from data.scan import scan_data
from pipeline import mending as module
from pipeline.build import BuildConfig, build_cache
from pipeline.fit.folder import FITTED_ON, FITTED_ON_FORMAT
from pipeline.mending import Repaired, repair_cache
from pipeline.scores.table import IMPORTED
from pipeline.teachers.teacher import Teacher

Cli = Callable[..., tuple[int, str, str]]
Flip = Callable[..., None]
N_BLOCK = 16
BIG = ("rows/params", "rows/witness", "logits/0", "features/embedding")


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Any:
    """Of 16 rows instead of 512, so that a tiny cache has eight of them.

    No test here may ask for a cache that other modules share: this one could not read it, or they could not.
    """
    with pytest.MonkeyPatch.context() as patch:
        for holder in (cache.layout, cache.verify, cache.mend):
            patch.setattr(holder, "CRC_ENTRIES", N_BLOCK)
        yield


@pytest.fixture(scope="module")
def sound(tiny_data: Path, tiny_build: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 120 rows."""
    return build_cache(tiny_data, tmp_path_factory.mktemp("sound") / "t.h5", tiny_build).path


@pytest.fixture
def damaged(sound: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copy(sound, tmp_path / "t.h5"))


def flip(path: Path, name: str, row: int = 0) -> None:
    """One bit of an object in a row."""
    with h5py.File(path, "r", locking=False) as h5:
        at = h5[name].id.get_offset() + row * (h5[name].id.get_storage_size() // len(h5[name]))
    content = bytearray(path.read_bytes())
    content[at + 1] ^= 4
    path.write_bytes(content)


def repaired(path: Path, data: Path, config: BuildConfig, **options: Any) -> Repaired:
    return repair_cache(path, data, config.teacher, device="cpu", workers=0, **options)


def assert_unchanged(path: Path, content: bytes) -> None:
    assert path.read_bytes() == content
    assert not path.with_name("t.h5.parts").exists()


@pytest.mark.parametrize("name", BIG)
@pytest.mark.parametrize("row", [0, 119])
def test_one_flipped_bit_of_any_object_is_put_right_bit_for_bit(
    name: str, row: int, damaged: Path, sound: Path, tiny_data: Path, tiny_build: BuildConfig, forward_rows: list[int]
) -> None:
    flip(damaged, name, row)
    first = row // N_BLOCK * N_BLOCK
    last = min(first + N_BLOCK, 120) - 1
    found = repaired(damaged, tiny_data, tiny_build)
    n_rows = 0 if name == "rows/params" else last - first + 1
    assert (found.blocks, found.n_rows, found.is_exact) == (((name, first, last),), n_rows, True)
    assert (sum(forward_rows), len(forward_rows)) == (n_rows, -(-n_rows // 4)), "passes as in the build"
    assert_unchanged(damaged, sound.read_bytes())


def test_damage_in_many_places_at_once_is_put_right(
    damaged: Path, sound: Path, tiny_data: Path, tiny_build: BuildConfig, forward_rows: list[int]
) -> None:
    for name, row in (("rows/params", 3), ("logits/0", 5), ("features/embedding", 5), ("logits/0", 70)):
        flip(damaged, name, row)
    flip(damaged, "rows/witness", 66)
    found = repaired(damaged, tiny_data, tiny_build)
    assert len(found.blocks) == 5
    assert found.n_rows == 2 * N_BLOCK == sum(forward_rows)
    assert_unchanged(damaged, sound.read_bytes())


def test_every_row_of_every_object_can_be_put_right(
    damaged: Path, sound: Path, tiny_data: Path, tiny_build: BuildConfig
) -> None:
    for name in BIG:
        for row in range(0, 120, N_BLOCK):
            flip(damaged, name, row)
    assert len(repaired(damaged, tiny_data, tiny_build).blocks) == 4 * 8
    assert_unchanged(damaged, sound.read_bytes())


def test_each_of_several_tasks_is_put_right(
    tiny_data: Path, tiny_build: BuildConfig, two_tasks_scan: ScanOptions, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_build, views=1)
    path = build_cache(tiny_data, tmp_path / "t.h5", config, two_tasks_scan).path
    content = path.read_bytes()
    for name in ("logits/0", "logits/1"):
        flip(path, name, 20)
    assert repaired(path, tiny_data, config, scan=two_tasks_scan).n_rows == N_BLOCK
    assert_unchanged(path, content)


def test_which_images_the_teacher_was_fitted_on_is_asked_again(
    tiny_data: Path, tiny_teacher: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    fitted = shutil.copytree(tiny_teacher, tmp_path / "fitted")
    keys = [sample.key.hex() for sample in scan_data(tiny_data).samples]
    (fitted / FITTED_ON).write_text(json.dumps({"format": FITTED_ON_FORMAT, "keys": keys[::2]}))
    config = dataclasses.replace(tiny_build, teacher=str(fitted), views=1)
    path = build_cache(tiny_data, tmp_path / "t.h5", config).path
    content = path.read_bytes()
    assert set(CacheReader(path).features) == {"embedding", "seen"}
    flip(path, "features/seen", 20)
    damaged = path.read_bytes()
    with pytest.raises(
        CacheMismatch, match="says which images its teacher was fitted on, and this copy of the teacher"
    ):
        repair_cache(path, tiny_data, str(tiny_teacher), device="cpu", workers=0)
    assert_unchanged(path, damaged)
    assert repaired(path, tiny_data, config).is_exact
    assert_unchanged(path, content)


def test_bytes_of_no_object_become_zero_and_nobody_is_asked(
    sound: Path, tiny_build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    resealed: Callable[..., Path],
) -> None:  # fmt: skip
    wide = np.ones((120, 300), "<f2")  # large enough to start on a page, which leaves a gap before it
    path = resealed(sound, lambda table: dataclasses.replace(table, features={"embedding": wide}), name="t.h5")
    content = path.read_bytes()
    with h5py.File(path, "r", locking=False) as h5:
        gap = h5["features/embedding"].id.get_offset() - 1
    path.write_bytes(content[:gap] + b"\1" + content[gap + 1 :])
    ((name, _, _),) = CacheReader(path).damaged_blocks()
    assert name == "unused bytes"
    monkeypatch.setattr(module, "load_as_stored", lambda *_: pytest.fail("the teacher was loaded"))
    found = repaired(path, tmp_path / "no images", tiny_build)
    assert (found.n_rows, found.is_exact) == (0, True)
    assert_unchanged(path, content)


def test_drawn_numbers_need_neither_images_nor_teacher(
    damaged: Path, sound: Path, tiny_build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(damaged, "rows/params", 40)
    monkeypatch.setattr(module, "load_as_stored", lambda *_: pytest.fail("the teacher was loaded"))
    assert repaired(damaged, tmp_path / "no images", tiny_build).is_exact
    assert_unchanged(damaged, sound.read_bytes())


def test_a_sound_file_is_not_touched(cli: Cli, damaged: Path, tiny_data: Path, tiny_teacher: Path) -> None:
    content, stamp = damaged.read_bytes(), damaged.stat()
    code, out, err = cli("cache", "repair", damaged, tiny_data, "--teacher", tiny_teacher)
    assert (code, out, err) == (0, f"{damaged}: nothing to repair, every byte is as it was sealed\n", "")
    assert damaged.stat().st_mtime_ns == stamp.st_mtime_ns
    assert damaged.stat().st_ino == stamp.st_ino
    assert_unchanged(damaged, content)


def test_the_command_says_what_it_did(cli: Cli, damaged: Path, tiny_data: Path, tiny_teacher: Path) -> None:
    flip(damaged, "logits/0", 20)
    code, out, err = cli("cache", "verify", damaged)
    assert code == 1
    assert f"compute these rows again with `softlabel cache repair {damaged} DATA --teacher T`" in err
    code, out, err = cli("cache", "repair", damaged, tiny_data, "--teacher", tiny_teacher, "--workers", 0)
    assert code == 0, err
    said = "1 block repaired (logits/0 rows 16-31), 16 rows computed again in fp32 on cpu; every byte is as it was sea"
    assert out == f"{damaged}: {said}led\n"
    assert cli("cache", "verify", damaged)[0] == 0


def test_an_answer_of_another_device_is_taken_within_the_tolerance_and_told_of(
    damaged: Path, sound: Path, tiny_data: Path, tiny_build: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(damaged, "logits/0", 33)
    flip(damaged, "rows/witness", 33)
    embed = Teacher.embed
    monkeypatch.setattr(Teacher, "embed", lambda self, pixels: embed(self, pixels) * np.float32(1 + 3e-6))
    found = repaired(damaged, tiny_data, tiny_build)
    assert not found.is_exact
    assert "its content_id is new" in found.line()
    one, other = CacheReader(damaged), CacheReader(sound)
    one.verify()
    assert (one.cache_id, one.names) == (other.cache_id, other.names)
    assert one.content_id != other.content_id
    np.testing.assert_allclose(one.logits(slice(None)), other.logits(slice(None)), atol=1e-4)
    rest = np.r_[0:32, 48:120]
    assert one.logits(rest).tobytes() == other.logits(rest).tobytes()
    (record,) = one.manifest.provenance["repaired"]
    assert (record["object"], record["rows"], record["compute"]["device"]) == ("logits/0", [32, 47], "cpu")


@pytest.mark.parametrize("other", ["witness", "logits", "embedding"])
def test_sound_numbers_of_these_rows_that_differ_stop_it(
    other: str, sound: Path, tiny_data: Path, tiny_build: BuildConfig, resealed: Callable[..., Path]
) -> None:
    def change(table: Table) -> None:
        array = {"witness": table.witness, "logits": table.logits["class"], "embedding": table.features["embedding"]}
        array[other][17] = array[other][17] + np.array(20).astype(array[other].dtype)

    path = resealed(sound, change, name="t.h5")
    flip(path, "logits/0" if other != "logits" else "rows/witness", 18)
    content = path.read_bytes()
    with pytest.raises(CacheMismatch, match=r"1 of 16 sound rows of \S+ differ from what is computed now") as caught:
        repaired(path, tiny_data, tiny_build)
    assert "nothing was changed; rebuild it with `softlabel cache build DATA -o OTHER.h5`" in str(caught.value)
    assert_unchanged(path, content)


def test_numbers_that_this_version_draws_otherwise_are_not_put_there(
    sound: Path, tiny_data: Path, tiny_build: BuildConfig, resealed: Callable[..., Path]
) -> None:
    def change(table: Table) -> None:
        table.params[17, 0] = 0.5

    path = resealed(sound, change, name="t.h5")
    flip(path, "rows/params", 18)
    content = path.read_bytes()
    with pytest.raises(CacheMismatch, match="numbers that this version draws for rows/params rows 16-31 are not those"):
        repaired(path, tiny_data, tiny_build)
    assert_unchanged(path, content)


def test_images_that_data_lacks_are_named_and_nothing_is_changed(
    damaged: Path, tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    flip(damaged, "logits/0", 50)
    content, reader = damaged.read_bytes(), CacheReader(damaged)
    owners = np.unique(reader.sample_of_row[48:64]).tolist()
    data = shutil.copytree(tiny_data, tmp_path / "images")
    assert reader.names is not None
    gone = [reader.names[at] for at in owners[:2]]
    (data / gone[0]).unlink()
    (data / gone[1]).write_bytes((data / gone[1]).read_bytes() + b"\0")
    with pytest.raises(CacheMismatch, match=rf"lacks 2 of the {len(owners)} images whose rows are damaged") as caught:
        repaired(damaged, data, tiny_build)
    assert sorted(line.strip(" -") for line in str(caught.value).splitlines()[1:]) == sorted(gone)
    assert_unchanged(damaged, content)


def test_of_many_images_that_data_lacks_twenty_are_named_and_the_others_counted(
    sound: Path, tiny_data: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    path = Path(shutil.copy(sound, tmp_path / "whole.h5"))
    reader = CacheReader(path)
    for first in range(0, reader.n_rows, N_BLOCK):
        flip(path, "logits/0", first)
    n_train = len(scan_data(tiny_data).of_split("train"))
    other = shutil.copytree(tiny_data, tmp_path / "images")
    for image in other.glob("train/*/*.png"):
        image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(CacheMismatch, match=rf"lacks {n_train} of the {reader.n_samples} images") as caught:
        repaired(path, other, tiny_build)
    _, *lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1].strip() == f"... and {n_train - 20} more"


def test_images_that_broke_meanwhile_are_named(
    damaged: Path, tiny_data: Path, tiny_build: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(damaged, "logits/0", 50)
    content = damaged.read_bytes()

    def broken(*_: object) -> None:
        raise BadImage("x", "it is cut off")

    monkeypatch.setattr(reading, "decode", broken)
    with pytest.raises(BadImage, match=r"images whose rows are damaged cannot be read or decoded; nothing was"):
        repaired(damaged, tiny_data, tiny_build)
    assert_unchanged(damaged, content)


def test_another_teacher_is_refused_with_what_differs(
    damaged: Path, tiny_data: Path, tiny_teacher: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    flip(damaged, "logits/0", 50)
    content, other = damaged.read_bytes(), shutil.copytree(tiny_teacher, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({**weights, "logit_bias": weights["logit_bias"] + 1}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CacheMismatch, match=rf"{other} is not the teacher of "):
        repair_cache(damaged, tiny_data, str(other), device="cpu", workers=0)
    assert_unchanged(damaged, content)


@pytest.mark.parametrize("name", ["seal", "samples/key", "rows/view", "crc32/logits/0"])
def test_where_the_seal_fails_nothing_is_repaired(
    name: str, cli: Cli, damaged: Path, tiny_data: Path, tiny_teacher: Path
) -> None:
    flip(damaged, name)
    content = damaged.read_bytes()
    code, out, err = cli("cache", "repair", damaged, tiny_data, "--teacher", tiny_teacher)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert "its seal does not match its tables" in line
    assert "rebuild it with `softlabel cache build DATA -o OTHER.h5`: neither `cache repair` nor `cache build" in line
    assert_unchanged(damaged, content)


@pytest.mark.parametrize(
    ("identity", "provenance", "said"),
    [
        ({"head": "probe"}, {}, "`softlabel cache probe PARENT.h5 DATA -o OTHER.h5`"),
        ({"head": "rehead"}, {}, "`softlabel cache rehead PARENT.h5 --prompts FILE -o OTHER.h5`"),
        ({"kind": IMPORTED}, {"scores": "s.csv"}, "`softlabel cache import s.csv DATA -o OTHER.h5`"),
    ],
)
def test_caches_that_no_teacher_said_name_what_makes_them_anew(
    identity: dict[str, str], provenance: dict[str, str], said: str, sound: Path, tiny_data: Path,
    tiny_build: BuildConfig, resealed: Callable[..., Path],
) -> None:  # fmt: skip
    teacher = {**CacheReader(sound).manifest.identity["teacher"], **identity}
    path = resealed(sound, identity={"teacher": teacher}, provenance=provenance, name="t.h5")
    flip(path, "logits/0", 3)
    content = path.read_bytes()
    with pytest.raises(CacheMismatch, match=re.escape(said)):
        repaired(path, tiny_data, tiny_build)
    assert_unchanged(path, content)


def test_a_full_disk_or_an_interrupt_leaves_the_damaged_file_and_the_same_command_goes_on(
    cli: Cli, damaged: Path, sound: Path, tiny_data: Path, tiny_build: BuildConfig, monkeypatch: pytest.MonkeyPatch,
    file_limit: Callable[[int], AbstractContextManager[None]], stop_at: Callable[..., None],
) -> None:  # fmt: skip
    flip(damaged, "logits/0", 3)
    content = damaged.read_bytes()
    with file_limit(10_000), pytest.raises(CacheDiskFull, match=r"no room for [\d,]{5,} bytes"):
        repaired(damaged, tiny_data, tiny_build)
    assert_unchanged(damaged, content)
    stop_at(2)
    words = ["cache", "repair", str(damaged), str(tiny_data), "--teacher", tiny_build.teacher, "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["softlabel", *words])
    code, _, err = cli(*words)
    assert code == 130
    assert err.strip().endswith("softlabel " + " ".join(words))
    assert_unchanged(damaged, content)
    assert cli(*words)[0] == 0
    assert_unchanged(damaged, sound.read_bytes())


def test_another_process_that_writes_the_cache_is_waited_for(
    damaged: Path, tiny_data: Path, tiny_build: BuildConfig
) -> None:
    flip(damaged, "logits/0", 3)
    content = damaged.read_bytes()
    with Workspace(damaged), pytest.raises(CacheBusy):
        repaired(damaged, tiny_data, tiny_build)
    assert_unchanged(damaged, content)


def test_a_block_that_goes_bad_meanwhile_is_not_sealed_in(
    damaged: Path, tiny_data: Path, tiny_build: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(damaged, "logits/0", 3)
    compute = module._compute

    def meanwhile(*arguments: Any) -> Any:
        flip(damaged, "features/embedding", 100)
        return compute(*arguments)

    monkeypatch.setattr(module, "_compute", meanwhile)
    with pytest.raises(CacheDamaged, match=r"while in use|damaged in more blocks by now"):
        repaired(damaged, tiny_data, tiny_build)
    assert len(CacheReader(damaged).damaged_blocks()) == 2
