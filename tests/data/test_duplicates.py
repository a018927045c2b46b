"""The same bytes twice, and groups on two sides of a split: counted once, listed, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.duplicates import group_leaks, without_repeats
from data.errors import BadSamples
from data.options import ScanOptions
from data.samples import Sample, SampleSet
from data.scan import survey
from data.splits import SPLITS

Scan = Callable[..., SampleSet]
Files = Callable[..., Path]
MakeTable = Callable[..., Path]
BY_PATIENT = {"csv": Path("t.csv"), "label_columns": ("dx",), "group_column": "patient", "split_column": "part"}


def copy(name: str, *others: str) -> None:
    for other in others:
        Path(other).parent.mkdir(parents=True, exist_ok=True)
        Path(other).write_bytes(Path(name).read_bytes())


def test_a_copy_without_a_label_is_the_image_with_the_label(files: Files, scan: Scan) -> None:
    files(*(f"{label}/{n}.jpg" for label in ("mel", "nv") for n in range(5)))
    copy("mel/0.jpg", "_unlabelled/x.jpg")
    found = scan()
    assert len(found.samples) == 10
    assert all(sample.labels for sample in found.samples)


def test_an_unlabelled_copy_of_a_test_image_in_train_is_a_leak(files: Files, scan: Scan) -> None:
    files(*(f"{split}/{label}/1.jpg" for split in ("train", "test") for label in ("mel", "nv")))
    copy("test/mel/1.jpg", "train/_unlabelled/x.jpg")
    with pytest.raises(BadSamples, match="1 images ") as caught:
        scan()
    assert "test/mel/1.jpg = train/_unlabelled/x.jpg" in str(caught.value)


def test_one_image_in_rows_of_different_tasks_has_the_labels_of_both(
    files: Files, table: MakeTable, scan: Scan
) -> None:
    files("a.jpg", "b.jpg", "c.jpg")
    copy("a.jpg", "a again.jpg")
    table("image,dx,sex,part", ["a,mel,,train", "a again,,f,train", "b,nv,m,train", "c,mel,m,test"])
    found = scan(csv=Path("t.csv"), label_columns=("dx", "sex"), split_column="part")
    assert [dict(sample.labels) for sample in found.samples if sample.name.startswith("a")] == [
        {"dx": "mel", "sex": "f"}
    ]


def test_the_same_bytes_in_two_groups_are_refused_unless_allowed(files: Files, table: MakeTable, scan: Scan) -> None:
    files("a.jpg", "b.jpg", "c.jpg")
    copy("a.jpg", "d.jpg")
    table("image,dx,patient,part", ["a,mel,1,train", "d,mel,2,train", "b,nv,3,train", "c,mel,4,test"])
    with pytest.raises(BadSamples, match="two classes or two splits or two groups") as caught:
        scan(**BY_PATIENT)
    assert "a.jpg = d.jpg" in str(caught.value)
    assert len(scan(**BY_PATIENT, allow_duplicates=True).samples) == 3


def test_groups_on_two_sides_are_listed_with_their_images_unless_allowed(
    files: Files, table: MakeTable, scan: Scan
) -> None:
    files(*(f"{n}.jpg" for n in range(10)))
    parts = {0: "test", 1: "val", 7: "val"}
    table("image,dx,patient,part", [f"{n},{'ab'[n % 2]},P{n // 6},{parts.get(n, 'train')}" for n in range(10)])
    with pytest.raises(BadSamples, match=r"2 of 2 groups stand in two splits .*--allow-group-leaks") as caught:
        scan(**BY_PATIENT)
    assert "P0: train 2.jpg, 3.jpg, 4.jpg and 1 more | val 1.jpg | test 0.jpg" in str(caught.value)
    assert "put all images of a group into one split" in str(caught.value)
    assert len(scan(**BY_PATIENT, allow_group_leaks=True).samples) == 10


def test_a_saved_split_from_before_the_groups_says_what_to_do(files: Files, table: MakeTable, scan: Scan) -> None:
    files(*(f"{n}.jpg" for n in range(40)))
    table("image,dx,patient", [f"{n},{'ab'[n % 2]},P{n % 8}" for n in range(40)])
    settings = {"csv": Path("t.csv"), "label_columns": ("dx",)}
    scan(**settings)
    with pytest.raises(BadSamples, match=r"t\.splits\.csv splits them, .*delete it to split anew.*--split-file"):
        scan(**settings, group_column="patient")
    Path("t.splits.csv").unlink()
    assert not group_leaks(scan(**settings, group_column="patient").samples)


def test_a_survey_finds_what_a_scan_refuses(files: Files, table: MakeTable, scan: Scan) -> None:
    files(*(f"{n}.jpg" for n in range(6)))
    Path("3.jpg").write_bytes(b"")
    copy("0.jpg", "again.jpg")
    rows = [f"{n},{'ab'[n % 2]},P{n % 3},{'train' if n < 4 else 'test'}" for n in range(6)]
    table("image,dx,patient,part", [*rows, "again,b,P0,train", "gone,a,P9,test"])
    found = survey(".", ScanOptions(**BY_PATIENT))
    assert [(one.names, one.in_labels, one.in_splits, one.in_groups) for one in found.conflicts] == [
        (("0.jpg", "again.jpg"), True, False, False)
    ]
    assert [(leak.group, dict(leak.names)) for leak in found.leaks] == [
        ("P1", {"train": ("1.jpg",), "test": ("4.jpg",)}), ("P2", {"train": ("2.jpg",), "test": ("5.jpg",)})
    ]  # fmt: skip
    assert [(file.path, file.reason) for file in found.bad] == [
        ("./3.jpg", "the file is empty"), ("gone (line 9)", "no such image")
    ]  # fmt: skip
    assert found.words[:3] == (".", "--csv", "t.csv")


SAMPLES = st.builds(
    Sample,
    key=st.integers(0, 9).map(lambda n: bytes([n]) * 16),
    path=st.just("x"),
    name=st.text("abc", min_size=1, max_size=5),
    split=st.sampled_from(SPLITS),
    labels=st.dictionaries(st.sampled_from(["dx", "sex"]), st.sampled_from("mn")),
    group=st.sampled_from(["", "g", "h"]),
)


@given(samples=st.lists(SAMPLES, max_size=30))
def test_every_content_stays_once_in_each_split_unless_its_labels_contradict(samples: list[Sample]) -> None:
    kept, n_left_out, conflicts = without_repeats(samples)
    assert n_left_out == len(samples) - len(kept)
    assert {(s.key, s.split) for s in kept} == {(s.key, s.split) for s in samples}
    for task in ("dx", "sex"):
        said = {(s.key, s.split, s.labels[task]) for s in samples if task in s.labels}
        assert {(s.key, s.split, s.labels[task]) for s in kept if task in s.labels} == said
    if not conflicts:
        assert len({s.key for s in kept}) == len(kept)
