"""Samples of a folder: content keys, labels, the two layouts, duplicates. No file here is ever decoded."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
from pathlib import Path

import pytest

from data import files as module
from data.errors import BadImage, BadSamples, DataError, DataNotFound, UnreadableImage
from data.options import ScanOptions
from data.samples import FOLDER_TASK, SampleSet, content_key
from data.scan import scan_data

SPLIT_SIZES = {"train": 3, "val": 2, "test": 2}


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


@pytest.fixture
def split_data(tmp_path: Path) -> Path:
    """DATA/<split>/<class>/*, two classes."""
    root = tmp_path / "images"
    for split, n_images in SPLIT_SIZES.items():
        for label in ("nv", "mel"):
            for number in range(n_images):
                write(root / split / label / f"{number}.jpg", f"{split} {label} {number}")
    return root


@pytest.fixture
def flat_data(tmp_path: Path) -> Path:
    """DATA/<class>/*, two classes of twenty."""
    root = tmp_path / "images"
    for label in ("nv", "mel"):
        for number in range(20):
            write(root / label / f"{number}.png", f"{label} {number}")
    return root


def described(found: SampleSet) -> set[tuple[bytes, str, str]]:
    """(key, split, label) of every sample: all that must survive renaming."""
    return {(sample.key, sample.split, sample.labels[FOLDER_TASK]) for sample in found.samples}


def test_a_key_is_blake2b_128_of_the_bytes() -> None:
    assert content_key(b"abc").hex() == "cf4ab791c62b8d2b2109c90275287816"
    assert content_key(b"abc") == hashlib.blake2b(b"abc", digest_size=16).digest()


def test_split_folders_give_split_label_name_and_key(split_data: Path) -> None:
    found = scan_data(split_data)
    assert len(found.samples) == 14
    assert found.splits == ("train", "val", "test")
    one = next(sample for sample in found.samples if sample.name == str(Path("val", "mel", "1.jpg")))
    assert one.key == content_key(b"val mel 1")
    assert (one.split, dict(one.labels)) == ("val", {"class": "mel"})
    assert Path(one.path).read_bytes() == b"val mel 1"
    assert not (split_data / "splits.csv").exists()


def test_class_folders_give_labels_and_a_split_made_here(flat_data: Path) -> None:
    found = scan_data(flat_data)
    assert len(found.samples) == 40
    assert {split: len(found.of_split(split)) for split in found.splits} == {"train": 28, "val": 6, "test": 6}
    assert all(sample.labels == {"class": Path(sample.path).parent.name} for sample in found.samples)
    assert (flat_data / "splits.csv").is_file()


@pytest.mark.parametrize(
    ("folder", "split"), [("val", "val"), ("valid", "val"), ("validation", "val"), ("dev", "val"), ("test", "test")]
)
def test_split_folders_may_have_their_usual_other_names(tmp_path: Path, folder: str, split: str) -> None:
    for place in ("train", folder):
        for label in ("a", "b"):
            write(tmp_path / place / label / "x.jpg", f"{place} {label}")
    assert {sample.split for sample in scan_data(tmp_path).samples} == {"train", split}


def test_an_unknown_folder_beside_the_splits_is_named(split_data: Path) -> None:
    write(split_data / "extra" / "mel" / "x.jpg", "extra")
    with pytest.raises(BadSamples, match="folders extra beside its splits"):
        scan_data(split_data)


def test_one_split_is_not_taken_for_a_whole_data_set_and_nothing_is_written(
    split_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(split_data / "val")
    for name in (split_data / "test", Path(".")):
        with pytest.raises(BadSamples, match=f"is one split of {split_data}: name that folder as DATA"):
            scan_data(name)
    assert not list(split_data.rglob("splits.csv"))


def test_a_data_set_may_be_called_test_where_no_other_split_is_beside_it(flat_data: Path) -> None:
    assert len(scan_data(flat_data.rename(flat_data.with_name("test"))).samples) == 40


def test_samples_are_sorted_by_split_and_key_and_nothing_else(split_data: Path) -> None:
    samples = scan_data(split_data).samples
    assert [sample.split for sample in samples] == ["train"] * 6 + ["val"] * 4 + ["test"] * 4
    for split in SPLIT_SIZES:
        keys = [sample.key for sample in samples if sample.split == split]
        assert keys == sorted(keys)


def test_class_order_is_sorted_as_python_sorts(tmp_path: Path) -> None:
    for label in ("nv", "Zoster", "bcc", "10 warts", "2 acne", "ächzen"):
        write(tmp_path / "train" / label / "x.jpg", label)
    assert scan_data(tmp_path).classes == {"class": ("10 warts", "2 acne", "Zoster", "bcc", "nv", "ächzen")}


def test_asking_for_a_split_that_is_not_there_names_those_that_are(split_data: Path) -> None:
    shutil.rmtree(split_data / "test")
    with pytest.raises(DataNotFound, match=r"no images in split 'test'; it has: train, val") as caught:
        scan_data(split_data).of_split("test")
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("layout", ["split_data", "flat_data"])
def test_renamed_and_copied_folders_keep_keys_labels_and_split(
    layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root: Path = request.getfixturevalue(layout)
    before = described(scan_data(root))
    for number, path in enumerate(sorted(root.rglob("*.*g"))):
        path.rename(path.with_name(f"renamed {100 - number}{path.suffix}"))
    assert described(scan_data(root)) == before
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    assert described(scan_data(moved)) == before


def test_a_changed_file_is_another_sample(split_data: Path) -> None:
    before = described(scan_data(split_data))
    write(split_data / "train" / "nv" / "0.jpg", "re-encoded")
    assert len(described(scan_data(split_data)) & before) == len(before) - 1


def test_the_same_bytes_twice_in_a_class_count_once_with_one_notice(
    split_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("copy 1.jpg", "copy 2.jpg"):
        write(split_data / "train" / "nv" / name, "train nv 0")
    with caplog.at_level(logging.INFO):
        found = scan_data(split_data)
    assert len(found.samples) == 14
    assert [sample.name for sample in found.samples if sample.key == content_key(b"train nv 0")] == [
        str(Path("train", "nv", "0.jpg"))
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "2 images repeat another one of their class byte for byte: each counts once"
    ]


def test_the_same_bytes_in_two_classes_or_splits_are_all_listed(split_data: Path) -> None:
    write(split_data / "train" / "mel" / "wrong label.jpg", "train nv 0")
    write(split_data / "test" / "mel" / "leak.jpg", "train mel 1")
    with pytest.raises(BadSamples, match=r"2 images .*--allow-duplicates") as caught:
        scan_data(split_data)
    assert "mel/wrong label.jpg = train/nv/0.jpg" in str(caught.value)
    assert "test/mel/leak.jpg = train/mel/1.jpg" in str(caught.value)
    assert "train/nv/1.jpg" not in str(caught.value)


def test_duplicates_that_are_allowed_stay_in_both_places(split_data: Path) -> None:
    write(split_data / "test" / "nv" / "leak.jpg", "train nv 0")
    found = scan_data(split_data, ScanOptions(allow_duplicates=True))
    assert sorted(s.split for s in found.samples if s.key == content_key(b"train nv 0")) == ["test", "train"]
    assert len(found.samples) == 15


def test_duplicates_in_two_classes_of_an_unsplit_folder_are_refused(flat_data: Path) -> None:
    write(flat_data / "mel" / "again.png", "nv 3")
    with pytest.raises(BadSamples, match=r"1 images .*leak") as caught:
        scan_data(flat_data)
    assert "mel/again.png = nv/3.png" in str(caught.value)


def test_every_empty_file_is_listed(split_data: Path) -> None:
    for name in ("train/nv/0.jpg", "val/mel/1.jpg", "test/nv/0.jpg"):
        write(split_data / name, "")
    with pytest.raises(BadImage, match="3 of 14 images cannot be read") as caught:
        scan_data(split_data)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 3
    assert all(line.endswith("the file is empty") for line in lines)


def test_files_that_the_system_does_not_give_are_an_error_also_where_bad_images_may_be_skipped(
    split_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network drive that went away says nothing of the images on it."""
    status = module._status

    def gone(path: str) -> os.stat_result | OSError:
        is_gone = Path(path).parts[-3:-1] == ("train", "nv")
        return OSError(errno.EIO, os.strerror(errno.EIO)) if is_gone else status(path)

    write(split_data / "val" / "nv" / "0.jpg", "")
    monkeypatch.setattr(module, "_status", gone)
    for options in (ScanOptions(), ScanOptions(skip_bad_images=True), ScanOptions(collect_bad_files=True)):
        with pytest.raises(UnreadableImage, match="3 of 14 images cannot be read; repeat the same command") as caught:
            scan_data(split_data, options)
        lines = str(caught.value).splitlines()[1:]
        assert [line.endswith("cannot be read (Input/output error)") for line in lines] == [True] * 3
        assert "--skip-bad-images" not in str(caught.value)


def test_a_cache_that_is_being_made_among_the_images_is_no_class_and_no_split(split_data: Path) -> None:
    for root in (split_data, split_data / "train"):
        before = scan_data(split_data)
        for name in ("t.h5", "t.h5.parts/lock", "t.h5.parts/plan.json", "t.h5.parts/0.h5", "merged.parts/lock"):
            write(root / name, "x")
        assert scan_data(split_data) == before


def test_a_folder_of_images_may_be_called_parts(flat_data: Path) -> None:
    for number in range(3):
        write(flat_data / "car.parts" / f"{number}.png", f"a class like any other {number}")
    assert scan_data(flat_data).classes == {"class": ("car.parts", "mel", "nv")}


def test_a_long_list_ends_in_a_count(split_data: Path) -> None:
    for number in range(130):
        write(split_data / "train" / "nv" / f"empty {number:03}.jpg", "")
    with pytest.raises(BadImage, match="130 of 144") as caught:
        scan_data(split_data)
    lines = str(caught.value).splitlines()
    assert len(lines) == 102
    assert lines[-1] == "  ... and 30 more"


def test_hidden_files_and_other_suffixes_are_no_samples(split_data: Path) -> None:
    write(split_data / "train" / "nv" / ".DS_Store", "x")
    write(split_data / "train" / "nv" / "._0.jpg", "the copy that a Mac leaves on foreign disks")
    write(split_data / "train" / "nv" / "notes.txt", "x")
    write(split_data / "train" / ".ipynb_checkpoints" / "0.jpg", "x")
    write(split_data / ".cache" / "0.jpg", "x")
    found = scan_data(split_data)
    assert len(found.samples) == 14
    assert found.classes == {"class": ("mel", "nv")}


def test_suffixes_count_in_capitals_too(split_data: Path) -> None:
    write(split_data / "train" / "nv" / "a.JPG", "a")
    write(split_data / "train" / "nv" / "b.Tiff", "b")
    assert len(scan_data(split_data).samples) == 16


def test_folders_without_images_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="no such folder") as caught:
        scan_data(tmp_path / "nothing")
    assert "DATA/<split>/<class>/*" in str(caught.value)
    (tmp_path / "mel").mkdir()
    with pytest.raises(DataNotFound, match=r"no images in .*\.jpg"):
        scan_data(tmp_path)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    write(tmp_path / "train" / "nv" / "0.jpg", "a")
    with pytest.raises(BadSamples, match=r"one class only \(nv\)"):
        scan_data(tmp_path)


def test_a_name_that_is_not_utf_8_survives_the_second_scan(tmp_path: Path) -> None:
    """Such names come out of old zip files; Linux keeps their bytes, other systems refuse or change them."""
    for label in ("nv", "mel"):
        for number in range(10):
            write(tmp_path / label / f"{number}.png", f"{label} {number}")
    try:
        (tmp_path / "nv" / "0.png").rename(tmp_path / "nv" / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        (tmp_path / "nv" / "0.png").rename(tmp_path / "nv" / "café.png")
    first = described(scan_data(tmp_path))
    assert described(scan_data(tmp_path)) == first


def test_errors_of_samples_share_one_base() -> None:
    assert all(issubclass(error, DataError) for error in (BadImage, BadSamples, DataNotFound))
    assert issubclass(BadSamples, ValueError)
