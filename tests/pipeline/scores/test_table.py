"""Tables of scores: what is read, what the logits are, and that every mistake is named with its place."""

from __future__ import annotations

import io
import math
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.scores import table as module
from pipeline.scores.table import PROBABILITY_FLOOR, ScoresError, ScoreTable, read_scores

CSV = "image,mel,nv\na.png,1.5,-2\nb.png,0,3e1\n"


def read(folder: Path, text: str, name: str = "s.csv") -> ScoreTable:
    (folder / name).write_bytes(text.encode())
    return read_scores(folder / name)


def refused(folder: Path, text: str | bytes, name: str = "s.csv") -> str:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ScoresError) as caught:
        read_scores(folder / name)
    return str(caught.value)


def npz(path: Path, **arrays: Any) -> Path:
    given_or_sound = {"image": ["a.png", "b.png"], "classes": ["mel", "nv"], "scores": [[1.5, -2.0], [0.0, 30.0]]}
    np.savez(path, **{name: value for name, value in (given_or_sound | arrays).items() if value is not None})
    return path


SAME = [
    CSV,
    "\ufeff" + CSV,
    CSV.replace("\n", "\r\n"),
    CSV.replace(",", ";"),
    CSV.replace(",", "\t"),
    "filename,nv,mel\nb.png,30,0\na.png,-2,1.5\n",
    "mel,nv,IMAGE_ID\n1.5,-2,a.png\n\n0,30,b.png\n,,\n",
    "image,label,mel,nv,view,\na.png,melanoma,1.5,-2.0,0,\nb.png,nevus,0,30,0,\n",
    ",mel,nv\na.png,1.5,-2\nb.png,0,3e1\n",
]


@pytest.mark.parametrize("text", SAME)
def test_every_spelling_of_one_table_is_the_same_table(text: str, tmp_path: Path) -> None:
    table = read(tmp_path, text)
    rows = dict(zip(table.images, table.scores_RC.tolist(), strict=True))
    assert (table.classes, rows) == (("mel", "nv"), {"a.png": [1.5, -2], "b.png": [0, 30]})
    assert not table.has_views
    assert table.sha256() == read_scores(npz(tmp_path / "s.npz")).sha256()


CHANGED = {
    "a score": CSV.replace("1.5", "1.6"),
    "an image": CSV.replace("b.png", "c.png"),
    "a class": CSV.replace("nv", "df"),
    "exchanged images": CSV.replace("a.png", "x").replace("b.png", "a.png").replace("x", "b.png"),
    "a view": "image,view,mel,nv\na.png,0,1.5,-2\nb.png,1,0,3e1\n",
}


@pytest.mark.parametrize("what", CHANGED)
def test_another_table_has_another_digest(what: str, tmp_path: Path) -> None:
    assert read(tmp_path, CHANGED[what]).sha256() != read(tmp_path, CSV).sha256()


WRONG_CSV = {
    "": "0 columns of scores",
    "image,mel,nv\n": "no row of scores",
    "image,mel\na.png,1\n": "1 columns of scores, expected one for each class: mel",
    "image,mel,mel\na.png,1,2\n": "two columns are named 'mel'",
    "image,name,mel,nv\na.png,a,1,2\n": "each of the columns image, name may name the image",
    ",image,mel,nv\n0,a.png,1,2\n": "a column of scores has no name (a row number, written by pandas?",
    CSV + "c.png,,1\n": "line 4: mel is empty, expected a number",
    CSV + "c.png,nan,1\n": "line 4: mel is 'nan', expected a number",
    CSV + "c.png,1,1e999\n": "line 4: nv is '1e999', expected a number",
    CSV + "c.png,1,n/a\n": "line 4: nv is 'n/a', expected a number",
    CSV + "c.png,1,1_0\n": "line 4: nv is '1_0', expected a number",
    CSV + "c.png,1\n": "line 4: 2 cells, expected 3",
    CSV + "a.png,1,2\n": "line 4: a.png stands in line 2 already",
    CSV + ",1,2\n": "line 4: no image is named",
    CSV + '"c.png"x,1,2\n': "is not CSV: line 4",
    "image,view,mel,nv\na.png,-1,1,2\n": "line 2: view is '-1', expected a whole number",
    "image,view,mel,nv\na.png,99999,1,2\n": "line 2: view 99999, expected 0..65535",
    "image,view,mel,nv\na.png,1,1,2\na.png,1,3,4\n": "line 3: a.png, view 1, stands in line 2 already",
}


@pytest.mark.parametrize("text", WRONG_CSV)
def test_a_csv_that_is_wrong_is_refused_with_the_line(text: str, tmp_path: Path) -> None:
    assert WRONG_CSV[text] in refused(tmp_path, text)


def test_all_that_is_wrong_is_listed_in_the_order_of_the_lines(tmp_path: Path) -> None:
    error = refused(tmp_path, CSV + "c.png,1,\nd.png,1\ne.png,inf,2\n")
    assert [line.split(":")[0].strip() for line in error.splitlines()[1:]] == ["line 4", "line 5", "line 6"]


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    assert "save it as CSV (UTF-8)" in refused(tmp_path, CSV.encode("utf-16"))
    assert "is a spreadsheet: save it as CSV" in refused(tmp_path, b"PK\3\4", "s.xlsx")
    with pytest.raises(ScoresError, match=r"cannot read the scores in .*none\.csv: No such file"):
        read_scores(tmp_path / "none.csv")


WRONG_NPZ: list[tuple[dict[str, Any], str]] = [
    ({"scores": None}, "it has no array scores; expected image, classes, scores"),
    ({"score": [1]}, "it has an array 'score', expected image, classes, scores and view; did you mean 'scores'?"),
    ({"image": np.array(["a", "b"], object)}, "`image` holds Python objects (a pickle): save np.array(..., dtype=str)"),
    ({"image": [1, 2]}, "`image` is int64, expected an array of str"),
    ({"view": [0.0, 1.0]}, "`view` is float64, expected an array of int"),
    ({"scores": [[1.0, 2.0]]}, "scores (1, 2); with 2 images and 2 classes, expected scores (2, 2)"),
    ({"scores": [1.0, 2.0]}, "scores (2,)"),
    ({"view": [[0, 1]]}, "view (1, 2)"),
    ({"scores": [[1.0, np.nan], [np.inf, 1.0]]}, "scores[0]: nv is nan, expected a number\n  scores[1]: mel is inf"),
    ({"view": [-1, 0]}, "scores[0]: view -1, expected 0..65535"),
    ({"image": ["a", "a"]}, "scores[1]: a stands in scores[0] already"),
    ({"classes": ["mel", "mel"]}, "two columns are named 'mel'"),
]


@pytest.mark.parametrize(("arrays", "said"), WRONG_NPZ)
def test_an_npz_that_is_wrong_is_refused_with_the_place(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ScoresError) as caught:
        read_scores(npz(tmp_path / "s.npz", **arrays))
    assert said in str(caught.value)


def test_an_npz_damaged_anywhere_is_refused_or_read_as_it_was(tmp_path: Path) -> None:
    """Flipped bits and cuts; never another error, never other numbers."""
    for compressed in (False, True):
        buffer, draw = io.BytesIO(), random.Random(0)
        (np.savez_compressed if compressed else np.savez)(
            buffer, image=["a.png", "b.png"], classes=["mel", "nv"], scores=[[1.5, -2.0], [0.0, 30.0]]
        )
        sound, n_refused = buffer.getvalue(), 0
        (tmp_path / "s.npz").write_bytes(sound)
        expected = read_scores(tmp_path / "s.npz").sha256()
        for _ in range(80):
            damaged = bytearray(sound)
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
            cut = len(damaged) if draw.random() < 0.8 else draw.randrange(len(damaged))
            (tmp_path / "s.npz").write_bytes(damaged[:cut])
            try:
                assert read_scores(tmp_path / "s.npz").sha256() == expected
            except ScoresError:
                n_refused += 1
        assert n_refused > 25


def test_an_npz_that_unpacks_to_more_than_the_limit_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    np.savez_compressed(tmp_path / "s.npz", image=["a"], classes=["b"], scores=np.zeros((1000, 1000), np.float32))
    assert (tmp_path / "s.npz").stat().st_size < 10_000
    with pytest.raises(ScoresError, match=r"unpacked it would have 4,000,\d+ bytes, expected at most 100,000"):
        read_scores(tmp_path / "s.npz")
    assert "has 100,001 bytes, expected at most 100,000" in refused(tmp_path, "x" * 100_001)


def test_a_header_that_promises_more_than_follows_allocates_nothing(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 2)))
    huge = buffer.getvalue().replace(b"(2, 2), }" + b" " * 20, b"(200000000000, 2), }" + b" " * 9)
    assert len(huge) == len(buffer.getvalue())
    assert huge != buffer.getvalue()
    path = npz(tmp_path / "s.npz", scores=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("scores.npy", huge)
    with pytest.raises(ScoresError, match=r"scores promises float64 \(200000000000, 2\), and 32 bytes follow"):
        read_scores(path)


def of_scores(scores: Any) -> ScoreTable:
    scores_RC = np.array(scores, np.float64)
    n_rows, n_classes = scores_RC.shape
    return ScoreTable(
        path=Path("s.csv"), images=[f"{row}.png" for row in range(n_rows)], views_R=np.zeros(n_rows, np.int64),
        classes=tuple(f"c{column:04}" for column in range(n_classes)), scores_RC=scores_RC,
        places=[f"line {row + 2}" for row in range(n_rows)],
    )  # fmt: skip


def softmax(logits_RC: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(logits_RC.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=12).filter(any))
def test_the_softmax_of_imported_probabilities_gives_them_back(weights: list[int]) -> None:
    p = np.array([weights], np.float64) / sum(weights)
    logits, n_raised = of_scores(p).logits("probabilities")
    assert logits.dtype == np.float32
    assert n_raised == (p < PROBABILITY_FLOOR).sum()
    assert np.abs(softmax(logits) - p).max() < 2e-6


def test_probabilities_of_0_have_the_logarithm_of_the_floor() -> None:
    logits, n_raised = of_scores([[1, 0], [0.25, 0.75]]).logits("probabilities")
    assert n_raised == 1
    expected = [[0, math.log(1e-7)], [math.log(0.25), math.log(0.75)]]
    np.testing.assert_allclose(logits, expected, rtol=1e-6)


def test_rows_that_are_no_probabilities_are_listed() -> None:
    table = of_scores([[0.5, 0.5], [0.7, 0.7], [-0.5, 1.5], [0.6, 0.4009], [50, 50]])
    with pytest.raises(ScoresError, match=r"3 of 5 rows of s\.csv are no probabilities.*--as logits") as caught:
        table.logits("probabilities")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert lines == ["line 3: 1.png sums to 1.4", "line 4: 2.png has -0.5", "line 6: 4.png sums to 100"]


def test_logits_that_are_all_probabilities_are_refused_and_one_row_that_is_none_makes_them_logits() -> None:
    with pytest.raises(ScoresError, match=r"look like probabilities: each of the 2 rows .* Pass --as probabilities"):
        of_scores([[0.5, 0.5], [1, 0]]).logits("logits")
    logits, n_raised = of_scores([[0.5, 0.5], [1, 0.1]]).logits("logits")
    assert (logits.tolist(), n_raised) == ([[0.5, 0.5], [1, np.float32(0.1)]], 0)


@pytest.mark.parametrize(("n_classes", "largest"), [(2, 3e38), (257, 6e4)])
def test_logits_that_a_cache_cannot_hold_are_listed(n_classes: int, largest: float) -> None:
    scores = np.zeros((2, n_classes))
    scores[1, 0] = largest
    assert of_scores(scores).logits("logits")[0].max() == np.float32(largest)
    scores[1, 1] = -largest * 2
    with pytest.raises(ScoresError, match=r"logits beyond .*, which a cache cannot hold:\n  line 3: 1\.png$"):
        of_scores(scores).logits("logits")
