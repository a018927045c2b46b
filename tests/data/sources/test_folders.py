"""Folders as people have them: the course's names, one level too high, folders in folders, images without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import BadSamples, DataNotFound
from data.samples import SampleSet

Scan = Callable[..., SampleSet]
Files = Callable[..., Path]

COURSE = ("1. Eczema 1677", "10. Warts Molluscum and other Viral Infections - 2103", "2. Melanoma 15.75k")


def course(files: Files, root: str = "training_dataset/train_dataset") -> None:
    suffixes = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".jfif", ".JPG")
    files(*(f"{root}/{name}/{number}{suffix}" for name in COURSE for number, suffix in enumerate(suffixes)))


def test_the_courses_folders_keep_their_names_and_the_servers_order(files: Files, scan: Scan) -> None:
    course(files)
    found = scan("training_dataset/train_dataset")
    assert found.classes == {"class": COURSE}
    assert len(found.samples) == 24


@pytest.mark.parametrize("root", ["training_dataset/train_dataset", "archive/training_dataset/train_dataset"])
def test_a_folder_too_high_names_the_right_one_and_writes_nothing(root: str, files: Files, scan: Scan) -> None:
    course(files, root)
    files("archive/__MACOSX/._x.jpg", "training_dataset/readme.txt")
    high = Path(root).parts[0]
    with pytest.raises(BadSamples, match=rf"{high} has no classes in it, they are further down: name {root} as DATA"):
        scan(high)
    assert not list(Path().rglob("splits.csv"))


def test_splits_that_are_called_otherwise_are_not_taken_for_classes(files: Files, scan: Scan) -> None:
    files(*(f"{split}/{label}/1.jpg" for split in ("train_dataset", "holdout") for label in ("mel", "nv", "bcc")))
    with pytest.raises(BadSamples, match=r"holdout, train_dataset in . hold folders of the same .* \(bcc, mel, nv\)"):
        scan()


def test_images_in_folders_below_a_class_are_of_that_class(files: Files, scan: Scan) -> None:
    files(
        *(f"{label}/{where}{n}.jpg" for label in ("mel", "nv") for where in ("", "2019/", "2019/a/") for n in range(2))
    )
    found = scan()
    assert Counter(sample.labels["class"] for sample in found.samples) == {"mel": 6, "nv": 6}
    assert {sample.name for sample in found.samples} >= {"mel/2019/a/1.jpg", "nv/0.jpg"}


@pytest.mark.parametrize("name", ["_unlabelled", "_unlabeled"])
def test_unlabelled_images_beside_the_classes_join_train(name: str, files: Files, scan: Scan) -> None:
    files(*(f"{label}/{n}.jpg" for label in ("mel", "nv") for n in range(20)), *(f"{name}/{n}.jpg" for n in range(9)))
    found = scan()
    assert found.classes == {"class": ("mel", "nv")}
    without = [sample for sample in found.samples if not sample.labels]
    assert Counter(sample.split for sample in without) == {"train": 9}
    assert Counter(sample.split for sample in found.samples if sample.labels) == {"train": 28, "val": 6, "test": 6}


def test_unlabelled_images_beside_the_splits_join_train_and_inside_a_split_stay_there(files: Files, scan: Scan) -> None:
    labelled = [f"{split}/{label}/1.jpg" for split in ("train", "val") for label in ("mel", "nv")]
    files(*labelled, "_unlabelled/a.jpg", "train/_unlabelled/b.jpg", "val/_unlabelled/deep/c.jpg")
    found = scan()
    assert {sample.name: sample.split for sample in found.samples if not sample.labels} == {
        "_unlabelled/a.jpg": "train", "train/_unlabelled/b.jpg": "train", "val/_unlabelled/deep/c.jpg": "val",
    }  # fmt: skip


def test_splits_in_capitals_and_folders_without_images_beside_them_are_no_matter(files: Files, scan: Scan) -> None:
    files(*(f"{split}/{label}/1.jpg" for split in ("Training", "Testing") for label in ("mel", "nv")), "docs/a/x.txt")
    assert scan().splits == ("train", "test")


def test_images_outside_of_any_class_are_told(files: Files, scan: Scan, caplog: pytest.LogCaptureFixture) -> None:
    files("a.jpg", "b.jpg")
    with pytest.raises(DataNotFound, match=r"2 images lie in no class folder.*_unlabelled/.*--csv names a table"):
        scan()
    files(*(f"{split}/{label}/1.jpg" for split in ("train", "val") for label in ("mel", "nv")), "val/c.jpg")
    with caplog.at_level("INFO"):
        assert len(scan().samples) == 4
    assert "3 images lie in no class folder and are not used (first: ./a.jpg)" in caplog.text


def test_files_beside_the_classes_such_as_the_saved_split_are_not_spoken_of(
    files: Files, scan: Scan, caplog: pytest.LogCaptureFixture
) -> None:
    files(*(f"{label}/{n}.jpg" for label in ("mel", "nv") for n in range(8)), "readme.txt")
    scan()
    with caplog.at_level("INFO"):
        scan()
    assert caplog.text == ""


def test_a_data_set_without_any_label_is_refused(files: Files, scan: Scan) -> None:
    files("_unlabelled/a.jpg", "_unlabelled/b.jpg")
    with pytest.raises(BadSamples, match="has no image with a label"):
        scan()
    assert not Path("splits.csv").exists()


def test_a_class_folder_without_images_is_said(files: Files, scan: Scan, caplog: pytest.LogCaptureFixture) -> None:
    """In the course's order every class behind it would move up by one."""
    root = files(*(f"set/{name}/{n}.jpg" for name in ("akiec", "mel", "nv") for n in range(4)))
    (root / "set" / "bcc").mkdir()
    with caplog.at_level("INFO"):
        assert scan("set").classes == {"class": ("akiec", "mel", "nv")}
    assert "folders without an image, which are no class: bcc" in caplog.text
    caplog.clear()
    files(*(f"splits/{split}/{name}/{n}{split}{name}.jpg" for split in ("train", "val") for name in "ab" for n in "12"))
    (root / "splits" / "val" / "c").mkdir()
    (root / "splits" / "val" / "b" / "empty").mkdir()
    with caplog.at_level("INFO"):
        scan("splits")
    assert "which are no class: c" in caplog.text


@pytest.mark.parametrize("mark", ["metrics.json", "last.pt", "seeds.json"])
def test_what_our_commands_wrote_among_the_images_is_no_class(
    mark: str, files: Files, scan: Scan, caplog: pytest.LogCaptureFixture
) -> None:
    files(*(f"set/{name}/{n}.jpg" for name in ("mel", "nv") for n in range(4)))
    files(f"set/scores/{mark}", "set/scores/test/confusion.png", "set/scores/test/reliability.png", "set/scores/a.png")
    with caplog.at_level("INFO"):
        assert scan("set").classes == {"class": ("mel", "nv")}
    assert "not looked into: 1 folders that softlabel wrote (first: set/scores)" in caplog.text


def test_classes_that_differ_in_capitals_alone_are_said(
    files: Files, scan: Scan, caplog: pytest.LogCaptureFixture
) -> None:
    files(*(f"set/{name}/{n}.jpg" for name in ("Mel", "mel", "nv") for n in range(4)))
    with caplog.at_level("INFO"):
        scan("set")
    assert "classes of class that differ in capitals alone: Mel and mel" in caplog.text
