"""Images that cannot be decoded: skipped if that was asked for, remembered by content, then skipped by training."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache import CacheReader
from data.errors import BadImage, DataError, UnreadableImage
from data.options import ScanOptions
from data.samples import content_key
from pipeline import build as module
from pipeline.bad_images import scan_like
from pipeline.build import BuildConfig, build_cache
from pipeline.errors import PipelineError
from pipeline.train import TrainConfig, train

Cli = Callable[..., tuple[int, str, str]]
SKIP = ScanOptions(skip_bad_images=True)
TRAIN = TrainConfig(student="shufflenet_v2_x0_5", student_size_px=32, epochs=1, batch_size=8)


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the images, to be changed."""
    return shutil.copytree(tiny_data, tmp_path / "images")


@pytest.fixture
def bad(data: Path) -> dict[Path, str]:
    """Files of `data` that are no whole image, with the reason: one of train, one of val."""
    train, val = (sorted(data.glob(f"{split}/*/*.png"))[0] for split in ("train", "val"))
    train.write_bytes(b"no image at all")
    val.write_bytes(val.read_bytes()[:-40])
    return {train: "not an image", val: "truncated"}


def listed(cache: Path) -> Any:
    return CacheReader(cache).manifest.provenance.get("skipped")


def test_a_build_that_may_skip_goes_on_and_says_what_it_left_out(
    data: Path, bad: dict[Path, str], tiny_build: BuildConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        result = build_cache(data, tmp_path / "t.h5", tiny_build, SKIP)
    assert (result.n_skipped, result.n_samples, result.n_rows, result.n_computed) == (2, 58, 116, 116)
    assert not (tmp_path / "t.h5.parts").exists()
    notices = [message for message in caplog.messages if "are left out" in message]
    assert len(notices) == 1
    assert notices[0].startswith("2 of 60 images cannot be decoded and are left out:\n")
    assert all(str(path) in notices[0] for path in bad)


def test_the_provenance_lists_key_and_reason_and_no_path(
    data: Path, bad: dict[Path, str], tiny_build: BuildConfig, tmp_path: Path
) -> None:
    entries = listed(build_cache(data, tmp_path / "t.h5", tiny_build, SKIP).path)
    keys = [content_key(path.read_bytes()).hex() for path in bad]
    assert [entry["key"] for entry in entries] == sorted(keys)
    reasons = {entry["key"]: entry["reason"] for entry in entries}
    for key, (path, reason) in zip(keys, bad.items(), strict=True):
        assert reason in reasons[key]
        assert path.name not in reasons[key]
        assert "/" not in reasons[key]
    assert all(set(entry) == {"key", "reason"} for entry in entries)


def gone(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    path.write_bytes(b"something else")


@pytest.mark.parametrize("happens", [gone, replaced])
@pytest.mark.parametrize("scan", [ScanOptions(), SKIP])
@pytest.mark.parametrize(
    ("after", "told", "n_left"),
    [("scan_data", "the teacher has not started", 120), ("find_bad_files", "else is computed and sealed", 3)],
)
def test_an_image_that_could_not_be_read_ends_the_build_keeps_the_rest_and_is_not_called_bad(
    after: str, told: str, n_left: int, happens: Callable[[Path], None], scan: ScanOptions, data: Path,
    tiny_build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As with a network drive that went away for a while."""
    out, path = tmp_path / "t.h5", sorted(data.glob("train/*/*.png"))[0]
    content, original = path.read_bytes(), getattr(module, after)

    def and_then(*args: Any) -> Any:
        found = original(*args)
        happens(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module, after, and_then)
        with pytest.raises(UnreadableImage, match=rf"(?s)1 of 60 images could not be read; .*{told}\. "
                           "Repeat the same command") as caught:  # fmt: skip
            build_cache(data, out, tiny_build, scan)
    assert str(path) in str(caught.value)
    assert "--skip-bad-images" not in str(caught.value)
    assert not out.exists()
    path.write_bytes(content)
    result = build_cache(data, out, tiny_build, scan)
    assert (result.n_computed, result.n_rows, listed(out)) == (n_left, 120, None)


def test_without_bad_images_nothing_is_listed(tiny_cache: Path) -> None:
    assert listed(tiny_cache) is None


def test_a_repeated_build_changes_nothing(
    data: Path, bad: dict[Path, str], tiny_build: BuildConfig, tmp_path: Path
) -> None:
    out = build_cache(data, tmp_path / "t.h5", tiny_build, SKIP).path
    before = out.read_bytes()
    again = build_cache(data, out, tiny_build, SKIP)
    assert (again.n_computed, again.n_skipped) == (0, 2)
    assert out.read_bytes() == before


def test_the_list_is_kept_when_the_cache_is_extended_after_the_images_went_away(
    data: Path, bad: dict[Path, str], tiny_build: BuildConfig, tmp_path: Path
) -> None:
    out = build_cache(data, tmp_path / "t.h5", tiny_build, SKIP).path
    before = listed(out)
    for path in bad:
        path.unlink()
    extended = build_cache(data, out, dataclasses.replace(tiny_build, views=4))
    assert (extended.n_computed, extended.n_skipped) == (29, 0)
    assert listed(out) == before


def test_images_that_went_bad_later_join_a_list_whose_images_went_away(
    data: Path, bad: dict[Path, str], tiny_build: BuildConfig, tmp_path: Path
) -> None:
    out = build_cache(data, tmp_path / "t.h5", tiny_build, SKIP).path
    before = listed(out)
    later = next(data.glob("test/*/*.png")).with_name("new.png")
    later.write_bytes(b"not this one either")
    for path in bad:
        path.unlink()
    assert build_cache(data, out, tiny_build, SKIP).n_skipped == 1
    keys = [entry["key"] for entry in listed(out)]
    assert keys == sorted([*(entry["key"] for entry in before), content_key(later.read_bytes()).hex()])


@pytest.mark.parametrize("nonsense", [5, [1], [{"key": 3}], {"key": "00"}])
def test_a_list_that_is_nonsense_does_not_stop_an_extension(
    nonsense: Any, data: Path, bad: dict[Path, str], tiny_build: BuildConfig, tmp_path: Path, tiny_cache: Path,
    resealed: Callable[..., Path],
) -> None:  # fmt: skip
    out = resealed(tiny_cache, provenance={"skipped": nonsense})
    assert build_cache(data, out, tiny_build, SKIP).n_skipped == 2
    keys = {entry["key"] for entry in listed(out)}
    assert {content_key(path.read_bytes()).hex() for path in bad} <= keys
    assert CacheReader(out).n_rows == 120


def test_where_nothing_can_be_decoded_no_cache_is_written(data: Path, tiny_build: BuildConfig, tmp_path: Path) -> None:
    for number, path in enumerate(data.glob("*/*/*.png")):
        path.write_bytes(b"no image %d" % number)
    with pytest.raises(BadImage, match="60 of 60 images cannot be decoded") as caught:
        build_cache(data, tmp_path / "t.h5", tiny_build, SKIP)
    assert "--skip-bad-images" not in str(caught.value), "that was tried"
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_training_leaves_out_what_the_build_left_out_without_being_told(
    data: Path, bad: dict[Path, str], tiny_teacher: Path, cli: Cli, tmp_path: Path
) -> None:
    build = ("cache", "build", data, "-o", tmp_path / "t.h5", "--teacher", tiny_teacher, "--views", 2)
    code, out, err = cli(*build, "--skip-bad-images")
    assert code == 0, err
    assert out.strip().endswith(", 2 images left out")
    student = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 1, "--workers", 0)
    code, out, err = cli("train", data, tmp_path / "t.h5", "-o", tmp_path / "run", *student)
    assert code == 0, err
    assert "2 images cannot be decoded and are left out" in err
    assert "29 train, 14 val" in err


def counted(cache: Path) -> Any:
    return CacheReader(cache).manifest.provenance.get("skipped_files")


EMPTY = r"(?s)1 of 60 images cannot be read.*--skip-bad-images.*the file is empty"


def test_empty_files_are_counted_and_left_out_by_training_as_by_the_build(
    data: Path, tiny_build: BuildConfig, tiny_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They have no content of their own to be remembered by."""
    next(data.glob("train/*/*.png")).write_bytes(b"")
    out, run = tmp_path / "t.h5", tmp_path / "run"
    with pytest.raises(DataError, match=EMPTY):
        build_cache(data, out, tiny_build)
    assert not out.exists()
    assert build_cache(data, out, tiny_build, SKIP).n_samples == 59
    assert counted(out) == {"the file is empty": 1}
    before = out.read_bytes()
    build_cache(data, out, tiny_build, SKIP)
    assert out.read_bytes() == before
    with pytest.raises(DataError, match=EMPTY):
        train(data, tiny_cache, run, TRAIN, workers=0)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert train(data, out, run, TRAIN, workers=0).best_epoch == 1
    assert sum("1 of 60 images cannot be read and are left out:" in message for message in caplog.messages) >= 1


def test_one_more_without_bytes_or_for_another_reason_needs_the_flag(
    data: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    first, second = sorted(data.glob("train/*/*.png"))[:2]
    first.write_bytes(b"")
    out = build_cache(data, tmp_path / "t.h5", tiny_build, SKIP).path
    with CacheReader(out) as reader:
        assert len(scan_like(reader, data, ScanOptions()).bad) == 1
        first.unlink()
        second.write_bytes(b"")
        assert len(scan_like(reader, data, ScanOptions()).bad) == 1, "as many are taken for the same ones"
        first.write_bytes(b"")
        with pytest.raises(BadImage, match="2 of 60 images cannot be read"):
            scan_like(reader, data, ScanOptions())
        first.unlink()
        second.unlink()
        second.mkdir()
        with pytest.raises(BadImage, match="1 of 59 images cannot be read"):
            scan_like(reader, data, ScanOptions())


def test_the_number_is_that_of_the_last_build(data: Path, tiny_build: BuildConfig, tmp_path: Path) -> None:
    path = next(data.glob("train/*/*.png"))
    content = path.read_bytes()
    path.write_bytes(b"")
    out = build_cache(data, tmp_path / "t.h5", tiny_build, SKIP).path
    path.write_bytes(content)
    build_cache(data, out, tiny_build)
    assert counted(out) == {}


@pytest.mark.parametrize("nonsense", [5, [1], {"the file is empty": "1"}, {"the file is empty": True}, {"": -1}])
def test_numbers_that_are_nonsense_leave_nothing_out(
    nonsense: Any, data: Path, tiny_cache: Path, resealed: Callable[..., Path]
) -> None:
    next(data.glob("train/*/*.png")).write_bytes(b"")
    with CacheReader(resealed(tiny_cache, provenance={"skipped_files": nonsense})) as reader:
        assert reader.manifest.skipped_files == {}
        with pytest.raises(DataError, match=EMPTY):
            scan_like(reader, data, ScanOptions())


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_which_nothing_is_left_is_an_error_before_training(
    split: str, data: Path, tiny_build: BuildConfig, tmp_path: Path
) -> None:
    for number, path in enumerate(sorted(data.glob(f"{split}/*/*.png"))[1 if split == "train" else 0 :]):
        path.write_bytes(b"no image %d" % number)
    out = build_cache(data, tmp_path / "t.h5", tiny_build, SKIP).path
    with pytest.raises((DataError, PipelineError), match=split):
        train(data, out, tmp_path / "run", TRAIN, workers=0)
    assert not (tmp_path / "run").exists()
