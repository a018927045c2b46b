"""The remembered split: made once, read ever after, joined by content key."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from data.errors import BadSamples, DataError
from data.splits import load_or_make, stratified_subset

Labels = dict[bytes, str]


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture
def label_of() -> Labels:
    """200 samples: 120 nv, 60 mel, 20 df."""
    return {key(i): "nv" if i < 120 else "mel" if i < 180 else "df" for i in range(200)}


def named(labels: Labels) -> dict[bytes, str]:
    return {sample: f"{label}/{sample.hex()[-4:]}.jpg" for sample, label in labels.items()}


def make(labels: Labels, path: Path) -> dict[bytes, str]:
    return load_or_make(labels, named(labels), path)


def test_a_split_is_stratified_and_complete(label_of: Labels, tmp_path: Path) -> None:
    assigned = make(label_of, tmp_path / "splits.csv")
    assert assigned.keys() == label_of.keys()
    shares = Counter((split, label_of[sample]) for sample, split in assigned.items())
    assert {label: shares["test", label] for label in ("nv", "mel", "df")} == {"nv": 18, "mel": 9, "df": 3}
    assert {label: shares["val", label] for label in ("nv", "mel", "df")} == {"nv": 18, "mel": 9, "df": 3}


def test_a_split_depends_on_keys_not_on_their_order(label_of: Labels, tmp_path: Path) -> None:
    first = make(label_of, tmp_path / "a.csv")
    assert make(dict(reversed(label_of.items())), tmp_path / "b.csv") == first


def test_the_file_is_written_once_and_read_ever_after(label_of: Labels, tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    first = make(label_of, path)
    content, modified_ns = path.read_bytes(), path.stat().st_mtime_ns
    # Other labels would give another split: what stands in the file counts.
    assert make({sample: "nv" if i % 2 else "mel" for i, sample in enumerate(label_of)}, path) == first
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, modified_ns)
    assert os.listdir(tmp_path) == ["splits.csv"]


def test_the_file_is_a_plain_csv_that_people_can_edit(label_of: Labels, tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    assigned = make(label_of, path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["split", "path", "key"]
    assert {bytes.fromhex(row["key"]): row["split"] for row in rows} == assigned
    moved = next(row for row in rows if row["split"] == "train")
    text = path.read_text(encoding="utf-8").replace(f"train,{moved['path']},", f"test,{moved['path']},")
    path.write_text(text, encoding="utf-8")
    changed = make(label_of, path)
    assert {sample for sample in assigned if assigned[sample] != changed[sample]} == {bytes.fromhex(moved["key"])}


def test_images_added_later_join_train_and_move_nobody(label_of: Labels, tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    first = make(label_of, path)
    more = label_of | {key(i): "df" for i in range(1000, 1010)}
    second = make(more, path)
    assert {second[key(i)] for i in range(1000, 1010)} == {"train"}
    assert {sample: second[sample] for sample in first} == first


def test_images_that_went_away_keep_their_place_for_their_return(label_of: Labels, tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    first = make(label_of, path)
    fewer = dict(list(label_of.items())[50:])
    found = make(fewer, path)
    assert {sample: found[sample] for sample in fewer} == {sample: first[sample] for sample in fewer}
    assert make(label_of, path) == first


def test_names_with_commas_quotes_breaks_and_odd_bytes_are_kept_apart(label_of: Labels, tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    names = named(label_of)
    for i, name in enumerate(["a,b.jpg", 'say "aah".jpg', "two\nlines.jpg", "ümlaut.jpg", "caf\udce9.jpg"]):
        names[key(i)] = name
    first = load_or_make(label_of, names, path)
    assert load_or_make(label_of, names, path) == first


def test_a_place_that_cannot_be_written_names_the_way_out(label_of: Labels, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be saved in .*--split-file"):
        make(label_of, tmp_path / "no folder" / "splits.csv")


def test_a_file_in_the_place_of_the_folder_names_the_way_out_too(label_of: Labels, tmp_path: Path) -> None:
    """Stands for a read-only file system: there, too, even removing what was never written fails."""
    (tmp_path / "a file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be saved in .*--split-file"):
        make(label_of, tmp_path / "a file" / "splits.csv")


def test_a_full_disk_is_told_in_bytes_leaves_nothing_and_the_next_call_splits_the_same(
    label_of: Labels, tmp_path: Path, file_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    expected = make(label_of, tmp_path / "expected.csv")
    n_bytes = (tmp_path / "expected.csv").stat().st_size
    path = tmp_path / "splits.csv"
    for limit in (0, 4000, n_bytes - 1):
        with (
            file_limit(limit),
            pytest.raises(DataError, match=rf"{n_bytes:,} bytes\) cannot be saved in") as caught,
        ):
            make(label_of, path)
        assert f"{path} (" in str(caught.value)
        assert "make room or pass --split-file FILE" in str(caught.value)
        assert os.listdir(tmp_path) == ["expected.csv"]
    assert make(label_of, path) == expected
    assert path.read_bytes() == (tmp_path / "expected.csv").read_bytes()


def test_a_folder_in_the_place_of_the_file_is_an_error_of_ours(label_of: Labels, tmp_path: Path) -> None:
    (tmp_path / "splits.csv").mkdir()
    with pytest.raises(DataError, match=r"splits\.csv"):
        make(label_of, tmp_path / "splits.csv")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("image,label\nx.jpg,mel\n", "is not a split file: expected the columns split, path, key"),
        ("", "is not a split file"),
        ("split,path,key\ntrain,x.jpg,not hex\n", "damaged"),
        ("split,path,key\ntrain,x.jpg\n", "damaged"),
        (f"split,path,key\ntrain,x.jpg,{'0' * 31}\n", "damaged"),
        (f"split,path,key\ntest,x.jpg,{'0' * 20}\n", "damaged"),
        (f"split,path,key\nholdout,x.jpg,{'0' * 32}\n", "names the splits holdout; expected train, val, test"),
        (f"split,path,key\n,x.jpg,{'0' * 32}\n", "names the splits"),
        ("split,path,key\ntrain,caf\udce9.jpg,zz\n", "damaged"),
    ],
)
def test_a_damaged_file_is_refused_with_its_path(label_of: Labels, tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    before = path.read_bytes()
    with pytest.raises(BadSamples, match=reason) as caught:
        make(label_of, path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_a_subset_has_the_class_shares_of_the_whole(label_of: Labels) -> None:
    subset = stratified_subset(label_of, 0.25, seed=3)
    assert Counter(label_of[sample] for sample in subset) == {"nv": 30, "mel": 15, "df": 5}
    assert stratified_subset(label_of, 0.25, seed=3) == subset
    assert stratified_subset(label_of, 0.25, seed=4) != subset


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({key(0): "nv", key(1): "nv", key(2): "nv", key(3): "mel"}, r"too few images of mel \(1\)"),
        ({key(0): "nv", key(1): "nv", key(2): "mel", key(3): "mel"}, "too few|cannot split"),
    ],
)
def test_classes_that_are_too_small_to_split_are_named(labels: Labels, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadSamples, match=reason):
        make(labels, tmp_path / "splits.csv")
    assert os.listdir(tmp_path) == []


def test_a_split_that_is_only_asked_for_is_the_one_that_would_be_saved(tmp_path: Path) -> None:
    labels = {bytes([number]) * 16: "ab"[number % 2] for number in range(40)}
    asked = load_or_make(labels, named(labels), tmp_path / "s.csv", save=False)
    assert not list(tmp_path.iterdir())
    assert load_or_make(labels, named(labels), tmp_path / "s.csv") == asked
