"""`softlabel data check`: each part of its page, its exit codes, and what it says of users' mistakes."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.near_duplicates import NearDuplicateConfig
from data.options import ScanOptions
from data.scan import scan_data
from pipeline.bad_images import find_bad_files, refuse_or_tell

Cli = Callable[..., tuple[int, str, str]]
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def save(path: Path, seed: int, **options: Any) -> Path:
    """A small image of blobs."""
    levels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).resize((48, 40), Image.Resampling.BICUBIC).save(path, **options)
    return path


@pytest.fixture(scope="session")
def seven_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 classes in train, val and test: 2 + 1 + 1 images each, and 5 more of nv in train."""
    root = tmp_path_factory.mktemp("seven") / "images"
    places = [(split, label) for split in ("train", "train", "val", "test") for label in CLASSES] + [
        ("train", "nv")
    ] * 5
    for seed, (split, label) in enumerate(places):
        save(root / split / label / f"{seed}.png", seed)
    return root


@pytest.fixture
def data(seven_classes: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(seven_classes, tmp_path / "images")


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of two tasks and 10 groups, without splits, and their table."""
    root = tmp_path_factory.mktemp("table") / "images"
    rows = [("file", "modality", "region", "patient")]
    for seed in range(40):
        save(root / f"{seed}.png", 100 + seed)
        rows.append((f"{seed}.png", ("CT", "MR")[seed % 2], ("" if seed < 4 else ("head", "chest")[seed // 20]),
                     f"p{seed // 4}" if seed < 36 else ""))  # fmt: skip
    with open(root / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root / "t.csv"


def section(page: str, name: str) -> list[str]:
    """The lines of one part of the page."""
    lines = page.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(name))
    found = [lines[start][17:]]
    for line in lines[start + 1 :]:
        if not line.startswith(" " * 17):
            break
        found.append(line[17:])
    return found


def test_a_good_data_set_is_one_screen_and_ok(cli: Cli, seven_classes: Path) -> None:
    code, page, err = cli("data", "check", seven_classes)
    assert (code, err) == (0, "")
    lines = page.splitlines()
    assert lines[:2] == [f"{seven_classes}: 33 images: train 19, val 7, test 7", "splits: the folders"]
    assert lines[-1] == f"OK: `softlabel cache build {seven_classes} -o t.h5` takes 33 images"
    assert len(lines) <= 45
    assert max(map(len, lines[3:-1])) <= 120
    assert section(page, "images") == ["PNG 33", "RGB 33", "all 48 x 40 px (0.0019 MP)"]
    assert section(page, "groups") == ["none known (--csv FILE --group-column COLUMN names lesions or patients)"]
    for name, said in [("bad files", "none of 33"), ("same bytes", "none in two classes, splits or groups"),
                       ("near-duplicates", "not looked for (--near-duplicates does)")]:  # fmt: skip
        assert section(page, name) == [said]
    assert "notices" not in page


def test_the_table_has_counts_and_shares_and_how_unequal_the_classes_are(cli: Cli, seven_classes: Path) -> None:
    lines = cli("data", "check", seven_classes)[1].splitlines()
    assert lines[3].split() == ["class", "train", "val", "test", "all"]
    assert lines[9].split() == ["nv", "7", "36.8", "%", "1", "14.3", "%", "1", "14.3", "%", "9", "27.3", "%"]
    assert lines[11] == "largest to smallest class: 2.2 to 1 (nv 9, vasc 4)"


def test_several_tasks_groups_and_a_split_that_nobody_saved(cli: Cli, table: Path) -> None:
    columns = ("--image-column", "file", "--label-column", "modality,region", "--group-column", "patient")
    before = sorted(table.parent.iterdir())
    code, page, err = cli("data", "check", table, *columns)
    assert code == 0, err
    assert sorted(table.parent.iterdir()) == before
    assert "task modality" in page
    assert "task region" in page
    assert re.search(r"^\(no label\) +.* 4$", page, re.MULTILINE)
    assert re.search(r"^CT .* 20  50\.0 %$", page, re.MULTILINE)
    assert section(page, "groups") == ["9 of 4 images (median), 4 at most; 4 images in none"]
    assert section(page, "group leaks") == ["none in two splits"]
    told = page.splitlines()[1]
    assert told.startswith(
        "splits: drawn by class, groups whole, seed 0; not saved: the first command that uses it will"
    )
    assert told.endswith(f" write {table.with_name('t.splits.csv')}")
    assert page.splitlines()[-1].endswith("--group-column patient -o t.h5` takes 40 images")
    found = json.loads(cli("data", "check", table, *columns, "--json", "--folds", 3, "--fold", 2)[1])
    assert found["splits_from"].startswith("fold 2 of 3 is test; drawn by class, groups whole, seed 0; not saved")
    assert found["groups"] == {"n": 9, "median": 4, "largest": 4, "n_without": 4}
    assert sum(found["tasks"]["region"]["unlabelled"].values()) == 4


def test_a_split_that_was_made_before_is_named(cli: Cli, table: Path, tmp_path: Path) -> None:
    words = (table, "--image-column", "file", "--label-column", "modality", "--split-file", tmp_path / "s.csv")
    scan_data(table, ScanOptions(image_column="file", label_columns=("modality",), split_file=tmp_path / "s.csv"))
    assert f"splits: drawn by class: {tmp_path / 's.csv'}\n" in cli("data", "check", *words)[1]


def test_json_has_everything_and_the_same_verdict(cli: Cli, data: Path) -> None:
    for number in range(30):
        (data / "train" / "nv" / f"bad {number}.png").write_bytes(b"no image %d" % number)
    page = cli("data", "check", data)[1]
    code, out, _ = cli("data", "check", data, "--json")
    assert code == 1
    found = json.loads(out)
    assert found["verdict"] == page.splitlines()[-1]
    first = data / "train" / "nv" / "bad 0.png"
    assert section(page, "bad files") == ["30 of 63", f"30 cannot be decoded (not an image): {first}, ..."]
    assert len(found["bad_files"]) == 30
    assert found["bad_files"][0]["reason"] == "cannot be decoded (not an image)"
    assert found["tasks"]["class"]["classes"]["nv"] == {"train": 37, "val": 1, "test": 1}
    assert (found["ok"], found["images"], found["near_duplicates"]) == (False, 63, None)
    assert found["problems"][0]["flag"] == "--skip-bad-images"


def test_the_page_of_a_thousand_classes_and_faults_stays_a_page(cli: Cli, tmp_path: Path) -> None:
    first = save(tmp_path / "images" / "train" / "0" / "0.png", 0)
    for number in range(1, 300):
        folder = tmp_path / "images" / ("train", "test")[number % 2] / f"{number} {'long ' * 20}"
        folder.mkdir(parents=True)
        (folder / "same.png").write_bytes(first.read_bytes())
        (folder / "bad.jpg").write_bytes(b"no image %d" % number)
    code, page, _ = cli("data", "check", tmp_path / "images")
    assert code == 1
    assert len(page.splitlines()) < 70
    assert "... 276 classes between them" in page
    assert "NOT OK: 299 bad files (remove or replace them, or pass --skip-bad-images); 1 image with the same " in page


def test_of_many_reasons_for_bad_files_the_usual_ones_are_told(cli: Cli, data: Path) -> None:
    reasons = {b"": 9, b"no image": 8, b"%PDF": 7, b"PK\x03\x04": 6, b"<html>": 5, b"\x1f\x8b": 4, b"%!PS": 3}
    for content, n_files in reasons.items():
        for number in range(n_files):
            (data / "train" / "nv" / f"{content.hex()} {number}.png").write_bytes(content and content + bytes([number]))
    found = section(cli("data", "check", data)[1], "bad files")
    assert found[0] == "42 of 75"
    assert found[1] == f"9 the file is empty: {data / 'train' / 'nv' / ' 0.png'}, ..."
    assert [line.split()[0] for line in found[1:]] == ["9", "8", "7", "6", "5", "7"]
    assert found[-1] == "7 for other reasons (--json lists all)"


def test_what_a_data_set_file_allows_is_allowed(cli: Cli, data: Path) -> None:
    repeat_in(data, "test", "akiec")
    (data / "seven.yaml").write_text("folder: .\nonly: [akiec, bcc]\n")
    assert cli("data", "check", data / "seven.yaml")[0] == 1
    (data / "seven.yaml").write_text("folder: .\nonly: [akiec, bcc]\nallow_duplicates: true\n")
    code, page, _ = cli("data", "check", data / "seven.yaml")
    assert code == 0
    assert page.splitlines()[-1] == f"OK: `softlabel cache build {data / 'seven.yaml'} -o t.h5` takes 9 images"


def repeat_in(data: Path, split: str, label: str) -> None:
    shutil.copy(data / "train" / "akiec" / "0.png", data / split / label / "copy.png")


def test_the_same_bytes_in_two_splits_are_a_leak_unless_allowed(cli: Cli, data: Path) -> None:
    repeat_in(data, "test", "akiec")
    code, page, _ = cli("data", "check", data)
    assert code == 1
    assert section(page, "same bytes")[1] == "test/akiec/copy.png = train/akiec/0.png (two splits)"
    assert page.splitlines()[-1] == (
        "NOT OK: 1 image with the same bytes in two splits (remove one of each, or pass --allow-duplicates)"
    )
    assert cli("data", "check", data, "--allow-duplicates")[0] == 0


def test_the_same_bytes_in_two_classes_are_a_contradiction_and_in_one_a_notice(cli: Cli, data: Path) -> None:
    repeat_in(data, "train", "akiec")
    code, page, _ = cli("data", "check", data)
    assert code == 0
    assert section(page, "notices") == ["1 images repeat another one of their class byte for byte: each counts once"]
    repeat_in(data, "train", "bcc")
    code, page, _ = cli("data", "check", data)
    assert code == 1
    assert "with the same bytes in two classes (remove one of each" in page


def test_a_group_in_two_splits_is_a_leak_unless_allowed(cli: Cli, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    images = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    lesion = {name: "shared" if name in (images[0], images[-1]) else str(at) for at, name in enumerate(images)}
    file.write_text("image,lesion\n" + "".join(f"{name},{group}\n" for name, group in lesion.items()))
    words = ("data", "check", data, "--csv", file, "--group-column", "lesion")
    code, page, _ = cli(*words)
    assert code == 1
    assert section(page, "group leaks") == ["1 in two splits", f"shared: val {images[-1]} | test {images[0]}"]
    assert "1 group in two splits (put all images of a group into one split, or pass --allow-group-leaks)" in page
    assert cli(*words, "--allow-group-leaks")[0] == 0


def test_near_duplicates_in_two_splits_are_a_leak_when_they_were_asked_for(cli: Cli, data: Path) -> None:
    save(data / "test" / "mel" / "again.jpg", 4, quality=80)  # train/mel/4.png
    save(data / "train" / "bcc" / "again.jpg", 0, quality=80)  # train/akiec/0.png
    assert cli("data", "check", data)[0] == 0
    code, page, _ = cli("data", "check", data, "--near-duplicates")
    assert code == 1
    title, pair, note, other = section(page, "near-duplicates")
    assert title == "1 pair in two splits (hashes within 12 bits, correlation from 0.98)"
    assert re.fullmatch(r"train/mel/4.png ~ test/mel/again.jpg \((0.99\d|1.000), \d bits\)", pair) or re.fullmatch(
        r"test/mel/again.jpg ~ train/mel/4.png \((0.99\d|1.000), \d bits\)", pair
    )
    assert note == "1 pair in two classes of one split, which is no leak:"
    assert "train/bcc/again.jpg" in other
    assert page.splitlines()[-1].startswith("NOT OK: 1 pair of near-duplicates in two splits (remove one of each")
    assert cli("data", "check", data, "--near-duplicates", "--allow-duplicates")[0] == 0
    assert cli("data", "check", data, "--near-duplicates", "--min-correlation", 1)[0] == 0
    found = json.loads(cli("data", "check", data, "--near-duplicates", "--json")[1])["near_duplicates"]
    (one,) = found["across_splits"]
    assert {side["split"] for side in one["images"]} == {"train", "test"}
    assert (found["max_hamming"], found["min_correlation"]) == (12, 0.98)


def changed(change: str, data: Path) -> None:
    """One thing that is wrong with a data set."""
    train = data / "train"
    if change == "no image":
        (train / "nv" / "bad.png").write_bytes(b"no image")
    elif change == "empty":
        (train / "nv" / "empty.png").touch()
    elif change == "link":
        (train / "nv" / "link.png").symlink_to("nothing.png")
    elif change == "two splits":
        repeat_in(data, "test", "akiec")
    elif change == "two classes":
        repeat_in(data, "train", "bcc")
    elif change == "repeat":
        repeat_in(data, "train", "akiec")
    elif change == "one class":
        for folder in data.glob("*/*"):
            if folder.name != "nv":
                shutil.rmtree(folder)
    elif change == "no split":
        for folder in (train, data / "val"):
            shutil.rmtree(folder)
        for folder in (data / "test").iterdir():
            shutil.move(folder, data / folder.name)
    elif change == "unlabelled":
        save(data / "_unlabelled" / "x.png", 77)
    else:
        assert change == "none"


@pytest.mark.parametrize("allowed", [{}, {"skip_bad_images": True}, {"allow_duplicates": True}])
@pytest.mark.parametrize(
    "change",
    ["none", "no image", "empty", "link", "two splits", "two classes", "repeat", "one class", "no split", "unlabelled"],
)
def test_the_verdict_is_that_of_a_build(change: str, allowed: dict[str, bool], cli: Cli, data: Path) -> None:
    changed(change, data)
    scan = ScanOptions(**allowed, remember_split=False, collect_bad_files=True)
    try:
        images = scan_data(data, scan)
        bad = [*images.bad, *find_bad_files(images.samples)]
        refuse_or_tell(bad, len(images.samples) + len(images.bad), "", skip=scan.skip_bad_images)
        expected = 0
    except DataError:
        expected = 1
    assert cli("data", "check", data, *dataclasses.replace(scan, skip_bad_images=False).words(),
               *["--skip-bad-images"] * scan.skip_bad_images)[0] == expected  # fmt: skip


def test_files_that_can_only_be_read_later_are_never_allowed(
    cli: Cli, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data import checks
    from data.errors import UnreadableImage

    def fails(sample: Any) -> bytes:
        raise UnreadableImage("cannot be read (Input/output error)", sample.path)

    monkeypatch.setattr(checks, "read_encoded", fails)
    code, page, _ = cli("data", "check", data, "--skip-bad-images")
    assert code == 1
    assert "NOT OK: 33 files could not be read, which says nothing about the images" in page


def test_names_that_a_terminal_would_obey_are_shown(cli: Cli, data: Path) -> None:
    (data / "train" / "nv" / "a\x1b[2Jb.png").write_bytes(b"no image")
    assert r"a\x1b[2Jb.png: cannot be decoded" in cli("data", "check", data)[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "no such folder: nothing"),
        (("empty",), "no images in empty"),
        (("t.h5",), "t.h5 is a file; expected a folder, a table (.csv) or a data set file"),
        (("nothing.csv", "--label-column", "dx"), "cannot read nothing.csv"),
        (("TABLE", "--image-column", "file", "--label-column", "modalty"), "no column modalty; it has file, modality"),
        (("DATA", "--only", "melanoma"), "no class is called 'melanoma'"),
        (("DATA", "--label-column", "dx"), "--label-column dx goes with a table: name it with --csv FILE"),
        (("DATA", "--near-duplicates", "--max-hamming", "40"), "--max-hamming must be in 0..20, got 40"),
        (("DATA", "--near-duplicates", "--min-correlation", "0"), "--min-correlation must be in 0.5..1, got 0"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_1(
    words: tuple[str, ...], said: str, cli: Cli, seven_classes: Path, table: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("t.h5").touch()
    given = {"DATA": str(seven_classes), "TABLE": str(table)}
    code, out, err = cli("data", "check", *(given.get(word, word) for word in words))
    assert (code, out) == (1, "")
    assert said in err
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1


def test_thresholds_without_the_search_are_usage(cli: Cli, seven_classes: Path) -> None:
    code, out, err = cli("data", "check", seven_classes, "--max-hamming", 3)
    assert (code, out) == (2, "")
    assert "--max-hamming and --min-correlation go with --near-duplicates" in err


def test_the_help_says_the_thresholds_as_they_are(cli: Cli) -> None:
    said = " ".join(cli("data", "check", "--help")[1].split())
    default = NearDuplicateConfig()
    assert f"that may differ [{default.max_hamming}]" in said
    assert f"at least [{default.min_correlation:g}]" in said


def test_ctrl_c_ends_it_at_once(cli: Cli, seven_classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from data import checks

    def interrupted(sample: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "read_encoded", interrupted)
    code, out, err = cli("data", "check", seven_classes)
    assert (code, out) == (130, "")
    assert "Interrupted." in err
