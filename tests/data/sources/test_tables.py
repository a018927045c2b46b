"""Tables: every usual kind is read, a row finds its image, and all that does not fit is listed at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import BadImage, BadSamples, DataError, DataNotFound
from data.options import ScanOptions
from data.samples import SampleSet
from data.scan import scan_data, survey
from data.sources.tables import ImageNames, read_table, stem

Scan = Callable[..., SampleSet]
Files = Callable[..., Path]
MakeTable = Callable[..., Path]
DX = {"label_columns": ("dx",)}


def labels(found: SampleSet, task: str) -> dict[str, str]:
    """Name -> class of the samples that have a label."""
    return {sample.name: sample.labels[task] for sample in found.samples if task in sample.labels}


@pytest.fixture
def ham(files: Files, table: MakeTable) -> Path:
    """HAM10000 as it is downloaded: two folders, ids without suffix, lesions of several images."""
    for number in range(60):
        files(f"HAM10000_images_part_{1 + number % 2}/ISIC_{number:07}.jpg")
    rows = [
        f"HAM_{number // 2},ISIC_{number:07},{('nv', 'mel', 'bkl')[number // 2 % 3]},histo,{number}.0,male,back"
        for number in range(60)
    ]
    return table("lesion_id,image_id,dx,dx_type,age,sex,localization", rows, "HAM10000_metadata.csv")


HAM = {
    "csv": Path("HAM10000_metadata.csv"),
    "image_column": "image_id",
    "label_columns": ("dx",),
    "group_column": "lesion_id",
    "image_dirs": (Path("HAM10000_images_part_1"), Path("HAM10000_images_part_2")),
}


def test_ham10000_is_read_as_it_is_downloaded(ham: Path, scan: Scan) -> None:
    found = scan(**HAM)
    assert found.classes == {"dx": ("bkl", "mel", "nv")}
    assert len(found.samples) == 60
    one = next(sample for sample in found.samples if sample.path.endswith("ISIC_0000007.jpg"))
    assert one.name == "HAM10000_images_part_2/ISIC_0000007.jpg"
    assert (one.labels, one.group) == ({"dx": "nv"}, "HAM_3")
    split_of = {sample.group: sample.split for sample in found.samples}
    assert all(split_of[sample.group] == sample.split for sample in found.samples)
    assert (ham.parent / "HAM10000_metadata.splits.csv").is_file()
    assert scan(**HAM) == found


def test_the_table_and_its_folders_are_found_in_the_working_folder_or_in_data(
    ham: Path, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {sample.key for sample in scan(**HAM).samples}
    monkeypatch.chdir("/")
    for data, settings in ((tmp_path, HAM), (ham, {**HAM, "csv": None}), (ham, {**HAM, "csv": None, "image_dirs": ()})):
        assert {sample.key for sample in scan_data(data, ScanOptions(**settings)).samples} == keys


def test_several_label_columns_are_several_tasks_and_an_empty_cell_is_no_label(
    files: Files, table: MakeTable, scan: Scan
) -> None:
    files(*(f"images/{number}.png" for number in range(40)))
    rows = [f"{n}.png,{'CT' if n % 2 else 'MR'},{('head', 'leg')[n % 4 // 2] if n else ''}" for n in range(40)]
    table("filename,modality,part", [*rows[:1], *rows[1:39], "39.png,,"])
    found = scan(csv=Path("t.csv"), label_columns=("part", "modality"))
    assert list(found.classes.items()) == [("part", ("head", "leg")), ("modality", ("CT", "MR"))]
    labels_of = {sample.name: dict(sample.labels) for sample in found.samples}
    assert labels_of["images/0.png"] == {"modality": "MR"}
    assert labels_of["images/39.png"] == {}
    assert [sample.split for sample in found.samples if not sample.labels] == ["train"]


@pytest.mark.parametrize("words", [{}, {"one_hot": ("MEL", "NV", "BCC")}], ids=["recognised", "named"])
def test_isic_ground_truth_is_one_task_and_a_row_of_zeros_has_no_label(
    words: dict[str, tuple[str, ...]], files: Files, table: MakeTable, scan: Scan, caplog: pytest.LogCaptureFixture
) -> None:
    files(*(f"input/ISIC_{number}.jpg" for number in range(31)))
    bits = ("1.0,0.0,0.0", "0.0,1.0,0.0", "0.0,0.0,1.0")
    table("image,MEL,NV,BCC", [*(f"ISIC_{n},{bits[n % 3]}" for n in range(30)), "ISIC_30,0.0,0.0,0.0"])
    with caplog.at_level("INFO"):
        found = scan("t.csv", **words)
    assert found.classes == {"class": ("BCC", "MEL", "NV")}
    assert Counter(labels(found, "class").values()) == {"MEL": 10, "NV": 10, "BCC": 10}
    assert ("labels: the columns MEL, NV, BCC of t.csv" in caplog.text) == (not words)


def test_two_classes_in_a_row_of_zeros_and_ones_are_all_listed(files: Files, table: MakeTable, scan: Scan) -> None:
    files("a.jpg", "b.jpg", "c.jpg")
    table("image,MEL,NV", ["a,1,1", "b,1,0", "c,0,0.5"])
    with pytest.raises(BadSamples, match="2 rows that are not one-hot") as caught:
        scan("t.csv", one_hot=("MEL", "NV"))
    assert "line 2: a is MEL and NV" in str(caught.value)
    assert "line 4: NV is 0.5" in str(caught.value)
    with pytest.raises(BadSamples, match=r"which column has the labels\?.*--one-hot.*it has image, MEL, NV"):
        scan("t.csv")


def test_a_split_column_may_have_the_usual_words(files: Files, table: MakeTable, scan: Scan) -> None:
    words = ("train", "Training", "valid", "dev", "validation", "TEST", "testing")
    files(*(f"{n}.jpg" for n in range(14)))
    table("image,dx,part", [f"{n},{'ab'[n % 2]},{words[n // 2]}" for n in range(14)])
    found = scan("t.csv", **DX, split_column="part")
    assert Counter(sample.split for sample in found.samples) == {"train": 4, "val": 6, "test": 4}
    assert not list(Path().glob("*splits*"))


def test_unknown_splits_are_listed_and_no_split_is_train_with_a_notice(
    files: Files, table: MakeTable, scan: Scan, caplog: pytest.LogCaptureFixture
) -> None:
    files("a.jpg", "b.jpg", "c.jpg")
    table("image,dx,part", ["a,x,tran", "b,y,holdout", "c,y,test"])
    with pytest.raises(BadSamples, match=r"has the splits holdout, tran; expected train, "):
        scan("t.csv", **DX, split_column="part")
    table("image,dx,part", ["a,x,", "b,y,train", "c,y,test"])
    with caplog.at_level("INFO"):
        assert Counter(one.split for one in scan("t.csv", **DX, split_column="part").samples) == {"train": 2, "test": 1}
    assert "1 images have no split in t.csv: they join train" in caplog.text


@pytest.mark.parametrize("root", ["", "images/"])
def test_images_in_folders_that_are_called_like_splits_keep_them(
    root: str, files: Files, table: MakeTable, scan: Scan
) -> None:
    names = [f"{root}{split}/{n}.jpg" for split in ("train", "test") for n in range(4)]
    files(*names)
    table("image,dx", [f"{name},{'ab'[n % 2]}" for n, name in enumerate(names)])
    found = scan("t.csv", **DX)
    assert {sample.name: sample.split for sample in found.samples} == {name: name.split("/")[-2] for name in names}


def test_a_table_without_labels_gives_groups_and_splits_to_the_folders_images(
    files: Files, table: MakeTable, scan: Scan
) -> None:
    files(*(f"{label}/{n}.jpg" for label in ("mel", "nv") for n in range(8)))
    places = ("train", "train", "val", "test")
    rows = [f"{label}/{n}.jpg,{label}{n // 2},{places[n // 2]}" for label in ("mel", "nv") for n in range(8)]
    table("path,patient,part", [*rows, "mel/gone.jpg,mel9,test"])
    found = scan(csv=Path("t.csv"), group_column="patient", split_column="part")
    assert found.classes == {"class": ("mel", "nv")}
    assert {(s.name, s.group, s.split) for s in found.samples} == {
        (name, group, split) for name, group, split in (row.split(",") for row in rows)
    }
    table("path,patient,part", rows[1:])
    with pytest.raises(BadSamples, match=r"mel/0\.jpg: no row"):
        scan(csv=Path("t.csv"), group_column="patient", split_column="part")


def test_a_table_that_contradicts_the_folders_splits_is_refused(files: Files, table: MakeTable, scan: Scan) -> None:
    files("train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg")
    table("image,part", ["1,train", "2,test", "3,test"])
    with pytest.raises(BadSamples, match=r"train/b/2\.jpg: lies in train, its row says test"):
        scan(csv=Path("t.csv"), split_column="part")


def test_everything_that_does_not_fit_is_listed_at_once(files: Files, table: MakeTable, scan: Scan) -> None:
    files("p/a.jpg", "q/a.jpg", "p/b.jpg", "p/c.jpg")
    table("image,dx,lesion", ["a,x,1", "b,x,1", "b.jpg,y,1", "c,x,2", "p/c.jpg,x,3"])
    with pytest.raises(BadSamples, match="do not fit together in 3 places") as caught:
        scan("t.csv", **DX, group_column="lesion")
    lines = str(caught.value)
    assert "line 2: a may be p/a.jpg and q/a.jpg: write relative paths" in lines
    assert "p/b.jpg (lines 3, 4): dx is x and y" in lines
    assert "p/c.jpg (lines 5, 6): group is 2 and 3" in lines


def test_rows_without_an_image_are_an_error_or_left_out(
    files: Files, table: MakeTable, scan: Scan, caplog: pytest.LogCaptureFixture
) -> None:
    files(*(f"{n}.jpg" for n in range(30)), "stranger.jpg")
    table("image,dx", [*(f"{n},{'ab'[n % 2]}" for n in range(30)), "gone,a", ",b"])
    with pytest.raises(BadImage, match=r"2 of 32 images are not there; complete .*--skip-bad-images") as caught:
        scan("t.csv", **DX)
    assert "gone (line 32): no such image" in str(caught.value)
    assert not list(Path().glob("*splits*")), "what is refused is not split"
    with caplog.at_level("INFO"):
        found = scan("t.csv", **DX, skip_bad_images=True)
    assert (len(found.samples), [file.path for file in found.bad]) == (
        30,
        ["gone (line 32)", "no image (line 33)"],
    )
    assert "1 images in . have no row in t.csv and are not used (first: stranger.jpg)" in caplog.text
    assert [file.is_missing for file in survey("t.csv", ScanOptions(**DX)).bad] == [True, True]


def test_a_table_without_rows_and_a_column_in_other_capitals_are_told(
    files: Files, table: MakeTable, scan: Scan
) -> None:
    files("a/1.jpg", "b/2.jpg")
    table("image,dx", [])
    with pytest.raises(BadSamples, match=r"t\.csv has a header and no rows: expected a row an image"):
        scan("t.csv", label_columns=("dx",))
    with pytest.raises(BadSamples, match=r"has no column DX; it has image, dx; did you mean 'dx'\?"):
        scan("t.csv", label_columns=("DX",))


def test_a_table_of_other_images_names_the_two_ways_out(files: Files, table: MakeTable, scan: Scan) -> None:
    files("a.jpg")
    table("image,dx", ["x,a", "y,b"])
    with pytest.raises(DataNotFound, match=r"none of the 2 images of t\.csv is among .*--image-dir.*--image-column"):
        scan("t.csv", **DX, skip_bad_images=True)
    with pytest.raises(DataNotFound, match="no such folder: nowhere"):
        scan("t.csv", **DX, image_dirs=(Path("nowhere"),))


def test_columns_that_are_not_there_are_all_named_with_their_neighbours(
    files: Files, table: MakeTable, scan: Scan
) -> None:
    files("a.jpg")
    table("image,diagnosis,lesion_id", ["a,x,1"])
    with pytest.raises(BadSamples) as caught:
        scan("t.csv", label_columns=("diagnosys",), group_column="lesion")
    assert "no column diagnosys; it has image, diagnosis, lesion_id; did you mean 'diagnosis'?" in str(caught.value)
    assert "no column lesion; it has image, diagnosis, lesion_id; did you mean 'lesion_id'?" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"image,dx\na,x\n", b"image;dx\na;x\n", b"image\tdx\r\na\tx\r\n", b"\xef\xbb\xbfimage,dx\na,x\n",
        b'"image","dx"\n"a","x"\n', b"image,dx,\n a , x ,\n\n",
    ],
    ids=["comma", "semicolon", "tab", "byte order mark", "quotes", "blanks"],
)  # fmt: skip
def test_every_usual_kind_of_table_is_read_alike(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    found = read_table(tmp_path / "t.csv")
    assert found.columns[:2] == ("image", "dx")
    assert [row.cells[:2] for row in found.rows] == [("a", "x")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image,dx\n1,x\n".encode("utf-16"), "written in UTF-16: save it as UTF-8 CSV"),
        (
            b"image,note\na,one, two\n",
            r"1 rows of .* more or fewer cells than its header has columns \(2\)(.|\n)*2: 3 cells",
        ),
        (b'image,note\na,"' + b"x" * 200_000 + b'"\n', "is no CSV table: line 2: field larger"),
    ],
)
def test_a_file_that_is_no_table_says_what_is_wrong(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_table(tmp_path / "t.csv")


def test_a_name_is_found_by_path_then_file_name_then_stem_then_the_end_of_the_path() -> None:
    names = ImageNames(["a/x.jpg", "b/x.jpg", "b/y.v2.png", "x.png"])
    assert names.find("a/x.jpg") == (0, [0])
    assert names.find(r".\a\x.jpg") == (0, [0])
    assert names.find("/mnt/d/b/x.jpg") == (1, [1])
    assert names.find("x.png") == (0, [3])
    assert names.find("y.v2") == (2, [2])
    assert names.find("y.v2.jpg") == (2, [2])
    assert names.find("x") == (2, [0, 1, 3])
    assert names.find("z") == (2, [])
    assert [stem(name) for name in ("a/x.JPG", "x.v2", ".jpg", "x")] == ["x", "x.v2", ".jpg", "x"]
