"""Subsets: nested, named by class, and never a reason for an image to change its split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadOption
from data.samples import Sample, SampleSet
from data.splits import SPLITS
from data.subsets import subset

Scan = Callable[..., SampleSet]
Files = Callable[..., Path]
MakeTable = Callable[..., Path]


@pytest.fixture
def flat(files: Files) -> None:
    files(*(f"{label}/{n}.jpg" for label in ("mel", "nv", "bcc") for n in range(20)), "_unlabelled/x.jpg")


def test_only_some_classes_and_only_so_many_of_each_leave_the_others_where_they_were(flat: None, scan: Scan) -> None:
    split_of = {sample.key: sample.split for sample in scan().samples}
    found = scan(only=("mel", "nv"), max_per_class=4)
    assert found.classes == {"class": ("mel", "nv")}
    assert Counter((sample.split, sample.labels["class"]) for sample in found.samples) == {
        ("train", "mel"): 4, ("train", "nv"): 4, ("val", "mel"): 3, ("val", "nv"): 3, ("test", "mel"): 3,
        ("test", "nv"): 3,
    }  # fmt: skip
    assert all(split_of[sample.key] == sample.split for sample in found.samples)
    assert found.words == (".", "--only", "mel,nv", "--max-per-class", "4")


def test_the_split_is_the_same_where_the_subset_was_asked_for_first(flat: None, scan: Scan) -> None:
    part = {(sample.key, sample.split) for sample in scan(only=("mel", "nv")).samples}
    assert part <= {(sample.key, sample.split) for sample in scan().samples}


@pytest.mark.parametrize(
    ("only", "said"),
    [
        (("mell",), r"no class is called 'mell'; did you mean 'mel'\? \(bcc, mel, nv\)"),
        (("mel", "class=bc"), "no class is called 'bc'; did you mean 'bcc'"),
        (("x=mel",), "no class is called 'x=mel'"),
    ],
)
def test_an_unknown_class_is_told_with_its_neighbour(only: tuple[str, ...], said: str, flat: None, scan: Scan) -> None:
    with pytest.raises(BadOption, match=said):
        scan(only=only)


def test_of_several_tasks_the_task_is_named_and_one_with_one_class_left_ends(
    files: Files, table: MakeTable, scan: Scan, caplog: pytest.LogCaptureFixture
) -> None:
    files(*(f"{n}.jpg" for n in range(60)))
    table("image,modality,part", [f"{n},{('CT', 'MR')[n % 2]},{('head', 'leg', 'arm')[n % 3]}" for n in range(60)])
    settings = {"csv": Path("t.csv"), "label_columns": ("modality", "part")}
    with caplog.at_level("INFO"):
        found = scan(**settings, only=("modality=CT",))
    assert (len(found.samples), found.classes) == (30, {"part": ("arm", "head", "leg")})
    assert "--only leaves one class of modality: no task any more" in caplog.text
    assert scan(**settings, only=("part=arm", "part=leg")).classes["part"] == ("arm", "leg")
    with pytest.raises(BadOption, match=r"of which task is 'CT'\? Write TASK=CT \(modality, part\)"):
        scan(**settings, only=("CT",))
    with pytest.raises(BadOption, match="no task is called 'modalty'; did you mean 'modality'"):
        scan(**settings, only=("modalty=CT",))


SAMPLES = st.lists(
    st.builds(
        Sample,
        key=st.binary(min_size=16, max_size=16),
        path=st.just(""),
        name=st.just(""),
        split=st.sampled_from(SPLITS),
        labels=st.sampled_from([{}, {"dx": "a"}, {"dx": "b"}]),
    ),
    unique_by=lambda sample: sample.key,
)


@given(samples=SAMPLES, n_each=st.integers(1, 5), more=st.integers(0, 5), shuffled=st.randoms())
def test_fewer_are_among_more_and_no_order_matters(
    samples: list[Sample], n_each: int, more: int, shuffled: object
) -> None:
    few, many = subset(samples, {}, n_each)[0], subset(samples, {}, n_each + more)[0]
    assert {sample.key for sample in few} <= {sample.key for sample in many}
    counts = Counter((sample.split, sample.labels.get("dx")) for sample in samples)
    assert Counter((sample.split, sample.labels.get("dx")) for sample in few) == {
        place: min(count, n_each) for place, count in counts.items()
    }
    shuffled.shuffle(samples)
    assert subset(samples, {}, n_each)[0] == few
