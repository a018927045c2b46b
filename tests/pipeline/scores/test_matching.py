"""Names in a table mean the images they name, or are listed: never the nearest one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data.options import ScanOptions
from data.samples import SampleSet
from data.scan import scan_data
from pipeline.scores.matching import MatchedScores, check_classes, match_images
from pipeline.scores.table import ScoresError, ScoreTable

NAMES = ["train/a/one.png", "train/b/two.v2.png", "val/a/tre\u0301.png", "val/b/4.png"]


@pytest.fixture(scope="session")
def images(few_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images, NAMES."""
    root = tmp_path_factory.mktemp("named") / "images"
    for source, name in zip(sorted(few_images.glob("*/*/*.png")), NAMES, strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / name)
    return root


@pytest.fixture
def own(images: Path, tmp_path: Path) -> Path:
    """A copy of the images, to be changed."""
    return shutil.copytree(images, tmp_path / "images")


def table(names: Sequence[str], views: Sequence[int] | None = None, scores: Sequence[int] | None = None) -> ScoreTable:
    numbers = np.arange(len(names)) if scores is None else np.array(scores)
    return ScoreTable(
        path=Path("s.csv"), images=names, views_R=np.array(views or [0] * len(names)), classes=("a", "b"),
        scores_RC=np.stack([numbers, -numbers], 1).astype(float),
        places=[f"line {row + 2}" for row in range(len(names))],
    )  # fmt: skip


def match(
    scores: ScoreTable, root: Path, *, views: int = 3, partial: bool = False, skip: bool = False
) -> MatchedScores:
    found = scan_data(root, ScanOptions(skip_bad_images=skip))
    return match_images(scores, found, views, partial=partial, skip_bad_images=skip)


def refused(scores: ScoreTable, root: Path, *, partial: bool = False) -> tuple[str, list[str]]:
    """The first line of the error, and what it lists."""
    with pytest.raises(ScoresError) as caught:
        match(scores, root, partial=partial)
    title, *lines = str(caught.value).splitlines()
    return title, [line.strip() for line in lines]


def rows_by_name(matched: MatchedScores, images: SampleSet) -> list[int]:
    key_of = {sample.name: sample.key for sample in images.samples}
    return [matched.rows(key_of[name], [0])[0] for name in NAMES]


SPELLINGS = [
    NAMES,
    ["one.png", "two.v2.png", "tre\u0301.png", "4.png"],
    ["one", "two.v2", "tr\u00e9", "4"],
    ["a/one.png", "b/two.v2", "val/a/tr\u00e9", "b/4"],
    [f"/home/me/images/{name}" for name in NAMES],
    [f".\\{name}".replace("/", "\\") for name in NAMES],
]


@pytest.mark.parametrize("names", SPELLINGS)
def test_every_way_to_name_an_image_finds_it(names: list[str], images: Path) -> None:
    matched = match(table(names[::-1]), images)
    assert rows_by_name(matched, matched.images) == [3, 2, 1, 0]
    assert matched.is_fixed


@pytest.mark.parametrize("name", ["One.png", "one.jpg", "two", "val/a/one.png", "b/one", "x/a/one.png", "ne.png"])
def test_a_name_that_is_nearly_one_is_unknown(name: str, images: Path) -> None:
    title, lines = refused(table([name, *NAMES[1:]]), images)
    assert "do not fit together; --partial leaves out what has no counterpart" in title
    assert lines == [f"line 2: no image {name}", "no scores of train/a/one.png"]


def test_a_name_of_two_images_is_refused_even_partially(own: Path) -> None:
    (own / "train/b/one.png").write_bytes((own / "val/b/4.png").read_bytes())
    (own / "val/b/4.png").unlink()
    title, lines = refused(table(["one", *NAMES[1:3]]), own, partial=True)
    assert "--partial" not in title
    assert lines == ["line 2: one may mean train/a/one.png or train/b/one.png"]


def test_an_image_that_is_named_twice_is_refused(images: Path) -> None:
    lines = refused(table([*NAMES, "one"]), images)[1]
    assert lines == ["line 6: one is the image of line 2: train/a/one.png"]


@pytest.mark.parametrize("named", ["both", "the one that the scan drops"])
def test_a_file_with_the_bytes_of_another_may_be_in_the_table(named: str, own: Path) -> None:
    shutil.copy(own / NAMES[0], own / "train/a/a copy.png")
    kept = {sample.name for sample in scan_data(own).samples}
    dropped = ({NAMES[0], "train/a/a copy.png"} - kept).pop()
    names = [*NAMES, "train/a/a copy.png"] if named == "both" else [dropped, *NAMES[1:]]
    matched = match(table(names, scores=[7, 1, 2, 3, 7][: len(names)]), own)
    assert len(matched.images.samples) == 4
    assert {sample.name for sample in matched.images.samples} == kept


def test_the_same_bytes_with_two_answers_are_refused(own: Path) -> None:
    shutil.copy(own / NAMES[0], own / "train/a/a copy.png")
    lines = refused(table([*NAMES, "a copy"]), own, partial=True)[1]
    assert lines == ["line 6: a copy is the very bytes, with other scores, of line 2: train/a/one.png"]


def test_what_has_no_counterpart_is_left_out_if_that_is_asked_for(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        matched = match(table(["elsewhere.png", *NAMES[1:]]), images, partial=True)
    assert [sample.name for sample in matched.images.samples if sample.split == "train"] == ["train/b/two.v2.png"]
    assert len(matched.images.samples) == 3
    assert caplog.messages == ["1 images without scores are left out", "1 rows too many are left out"]


@pytest.mark.parametrize("partial", [False, True])
def test_a_table_of_other_images_is_refused_with_an_example(partial: bool, images: Path) -> None:
    title, lines = refused(table(["x.png", "y.png"]), images, partial=partial)
    assert "s.csv has all scores of none of the 4 images of " in title
    assert "expected names such as train/" in title
    assert lines[0] == "line 2: no image x.png"


def test_an_image_that_is_none_needs_no_scores_where_it_may_be_skipped(own: Path) -> None:
    (own / NAMES[0]).write_bytes(b"no image")
    (own / NAMES[3]).write_bytes(b"")
    with pytest.raises(ScoresError, match=r"no scores of train/a/one\.png"):
        match(table(NAMES[1:3]), _without(own, NAMES[3]))
    matched = match(table(NAMES[1:3]), own, skip=True)
    assert len(matched.images.samples) == 3
    (own / NAMES[3]).write_bytes(b"")
    assert len(match(table(NAMES), own, skip=True).images.samples) == 3, "an empty file may be named"


def _without(root: Path, name: str) -> Path:
    (root / name).unlink(missing_ok=True)
    return root


VIEWS = [("train/a/one.png", view) for view in range(3)] + [("train/b/two.v2.png", view) for view in (2, 1, 0)]
VIEWS += [("val/a/tre\u0301.png", 0), ("val/b/4.png", 0)]


def with_views(pairs: list[tuple[str, int]]) -> ScoreTable:
    return table([name for name, _ in pairs], [view for _, view in pairs])


def test_scores_of_views_belong_to_their_views(images: Path) -> None:
    matched = match(with_views(VIEWS), images)
    key_of = {sample.name: sample.key for sample in matched.images.samples}
    assert not matched.is_fixed
    assert matched.rows(key_of["train/b/two.v2.png"], [0, 1, 2, 3]) == [5, 4, 3, -1]


def test_views_without_scores_and_scores_without_view_are_listed(images: Path) -> None:
    pairs = [*VIEWS[1:], ("train/b/two.v2.png", 3), ("val/b/4.png", 1)]
    lines = refused(with_views(pairs), images)[1]
    assert lines == [
        "line 9: train/b/two.v2.png has scores of view 3, expected 0..2",
        "line 10: val/b/4.png has scores of view 1, expected 0..0",
        "no scores of train/a/one.png, views 0",
    ]
    assert len(match(with_views(pairs), images, partial=True).images.samples) == 3


def test_classes_of_the_images_must_all_be_columns(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = scan_data(images)
    scores = table(NAMES)
    check_classes(scores, found)
    object.__setattr__(scores, "classes", ("a", "b", "c"))
    with caplog.at_level(logging.INFO):
        check_classes(scores, found)
    assert "has no images of, for teacher and student alike: c" in caplog.text
    object.__setattr__(scores, "classes", ("a", "B"))
    with pytest.raises(
        ScoresError, match=r"(?s)no scores for 1 of the 2 .*; it has a, B\. .*\n  b; did you mean 'B'\?$"
    ):
        check_classes(scores, found)
