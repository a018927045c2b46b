"""The command line of predict: rows as CSV or JSON, lists on standard input, and what it says to each mistake."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import predict as predicting
from pipeline.predict import PredictConfig
from pipeline.prediction_rows import write_predictions, write_rows
from pipeline.tasks import Tasks

from ..conftest import TwoTasks

Cli = Callable[..., tuple[int, str, str]]
Piped = Callable[[bytes], None]


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Piped:
    """`piped(text)`: what stands on standard input."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


@pytest.fixture(scope="module")
def images(tiny_data: Path) -> list[str]:
    return sorted(map(str, tiny_data.glob("test/melanoma/*.png")))


def names(out: str) -> list[str]:
    return [row["image"] for row in csv.DictReader(io.StringIO(out))]


def test_json_has_the_numbers_of_csv_in_full(cli: Cli, tiny_run: Path, images: list[str]) -> None:
    words = ("predict", tiny_run, Path(images[0]).parent, "--tta", 3)
    table = list(csv.DictReader(io.StringIO(cli(*words)[1])))
    code, out, err = cli(*words, "--format", "json")
    assert code == 0, err
    found = json.loads(out)
    assert [one["image"] for one in found] == images
    for one, row in zip(found, table, strict=True):
        assert list(one) == ["image", "label", "probabilities"]
        assert one["label"] == row["label"]
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-12)
        assert {name: f"{p:.4f}" for name, p in one["probabilities"].items()} == dict(list(row.items())[2:])


def test_json_of_several_tasks_is_nested_by_task(cli: Cli, two_tasks: TwoTasks, images: list[str]) -> None:
    code, out, err = cli("predict", two_tasks.run, images[0], "--format", "json")
    assert code == 0, err
    (one,) = json.loads(out)
    assert list(one) == ["image", "labels", "probabilities"]
    assert list(one["probabilities"]["tone"]) == ["dark", "pale"]
    for task, label in one["labels"].items():
        assert label == max(one["probabilities"][task], key=lambda name: one["probabilities"][task][name])
        assert sum(one["probabilities"][task].values()) == pytest.approx(1)


def test_paths_come_by_a_list_on_standard_input_where_it_is_asked_for(
    cli: Cli, piped: Piped, tiny_run: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(images[0]).parent)
    piped(b"00001.png\r\n\r\n00000.png\r\n")
    code, out, err = cli("predict", tiny_run, images[2], "-", images[0])
    assert (code, names(out)) == (0, [images[2], "00001.png", "00000.png", images[0]]), err
    piped(b"00001.png\0.\0")
    code, out, err = cli("predict", tiny_run, "-", "-0")
    assert (code, names(out)) == (0, ["00001.png", "./00000.png", "./00001.png", "./00002.png"]), err


def test_no_image_at_all_is_a_table_without_rows_or_an_empty_array(cli: Cli, piped: Piped, tiny_run: Path) -> None:
    for form, expected in (("csv", "image,label,"), ("json", "[]\n")):
        piped(b"\n")
        code, out, err = cli("predict", tiny_run, "-", "--format", form)
        assert (code, len(out.splitlines()), out.startswith(expected)) == (0, 1, True)
        assert "the list names no image" in err


def test_bad_files_are_listed_after_all_good_ones_were_answered(
    cli: Cli, tiny_run: Path, images: list[str], tmp_path: Path
) -> None:
    (tmp_path / "x.jpg").write_text("hello")
    bad = [str(tmp_path / "x.jpg"), *(str(tmp_path / f"{number}.jpg") for number in range(24))]
    words = ("predict", tiny_run, images[0], *bad, images[1], "--format", "json")
    code, out, err = cli(*words)
    assert (code, [one["image"] for one in json.loads(out)]) == (1, images[:2])
    assert "Error: 25 of 27 images cannot be used; the others are answered." in err
    assert "x.jpg: cannot be decoded (not an image)" in err
    assert "0.jpg: no such file" in err
    assert (len(err.splitlines()), "... and 5 more" in err) == (22, True)
    code, again, err = cli(*words, "--skip-bad-images")
    assert (code, again, "Error" in err) == (0, out, False)
    assert "notice   25 of 27 images cannot be used, and have no answer" in err
    code, out, err = cli("predict", tiny_run, bad[0], "--skip-bad-images", "--format", "json")
    assert (code, out, "are these the right files?" in err) == (1, "[]\n", True)


@pytest.mark.parametrize(
    ("words", "said", "exit_code"),
    [
        (("RUN",), "name image files or folders, or - to read their paths from standard input", 2),
        (("RUN", "-", "-"), "- can stand there once", 2),
        (("RUN", "IMAGE", "--null"), "-0, --null is about the list that - reads", 2),
        (("RUN", "IMAGE", "--format", "xml"), "'xml' is not one of 'csv', 'json'", 2),
        (("RUN", "IMAGE", "--tta", "0"), "tta must be in 1..64 views, got 0", 1),
        (("RUN", "EMPTY"), "no images below", 1),
        (("RUN", "t.csv", "IMAGE"), "t.csv is a table: predict takes image files and folders", 1),
        (("RUN", "CACHE"), "is a cache: predict takes image files and folders", 1),
        (("CACHE", "IMAGE"), "is a cache, no student", 1),
        (("IMAGE", "RUN"), "the order is `softlabel predict MODEL IMAGE...`", 1),
        (("EMPTY", "RUN"), "the order is `softlabel predict MODEL IMAGE...`", 1),
        (("EMPTY", "IMAGE"), "is not a run folder", 1),
        (("none.pt", "IMAGE"), "no such run folder or model file: none.pt", 1),
    ],
)
def test_a_mistake_is_one_message_and_no_row(
    words: tuple[str, ...], said: str, exit_code: int, cli: Cli, tiny_run: Path, tiny_cache: Path, images: list[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    given = {"RUN": tiny_run, "CACHE": tiny_cache, "IMAGE": images[0], "EMPTY": tmp_path}
    code, out, err = cli("predict", *(given.get(word, word) for word in words))
    assert (code, out, said in err) == (exit_code, "", True), err


def test_an_empty_word_is_not_the_working_folder(
    cli: Cli, tiny_run: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`"$IMAGE"` of a variable that is not set."""
    monkeypatch.chdir(Path(images[0]).parent)
    code, out, err = cli("predict", tiny_run, "", images[0])
    assert (code, names(out), "no such file" in err) == (1, images[:1], True)


def test_ctrl_c_leaves_the_rows_so_far_and_exits_with_130(
    cli: Cli, tiny_run: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, n_decoded = predicting.decode, 0

    def interrupted(encoded: bytes, name: str) -> Any:
        nonlocal n_decoded
        n_decoded += 1
        if n_decoded == 220:  # more than the first batch and what is read ahead of the second
            signal.raise_signal(signal.SIGINT)
        return decode(encoded, name)

    monkeypatch.setattr(predicting, "decode", interrupted)
    code, out, err = cli("predict", tiny_run, *(images * 100))
    assert (code, "Interrupted." in err, "Traceback" in err) == (130, True, False)
    assert names(out) == (images * 100)[: len(names(out))]
    assert 64 <= len(names(out)) < 220


def test_when_nobody_reads_on_no_further_image_is_read(
    tiny_run: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`| head`: the command line takes it as a quiet end."""
    decoded: list[str] = []

    def noting(encoded: bytes, name: str) -> Any:
        decoded.append(name)
        return decode(encoded, name)

    decode = predicting.decode
    monkeypatch.setattr(predicting, "decode", noting)
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError), os.fdopen(writing, "w", encoding="utf-8") as out:
        write_predictions(tiny_run, images * 100, out, PredictConfig())
    assert len(decoded) < 220


def test_every_row_is_handed_on_before_the_next_image_is_answered() -> None:
    said = predicting.Prediction("a.jpg", {"class": "x"}, {"x": 0.75, "y": 0.25})
    for form, first in (("csv", "image,label,x,y\na.jpg,x,0.7500,0.2500\n"), ("json", '[\n{"image": "a.jpg",')):
        out, seen = io.StringIO(), []

        def predictions(out: io.StringIO = out, seen: list[str] = seen) -> Any:
            yield said
            seen.append(out.getvalue())
            yield said

        assert write_rows(predictions(), Tasks({"class": ("x", "y")}), out, form, told=lambda: None) == []
        assert seen[0].startswith(first)
