"""The benchmark of the cache in small: its tables come out, its sizes hold, and it sees what it must not pass over."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

SEVEN, THOUSAND, EMBEDDED = "C = 7 logits", "C = 1000 logits", "D = 1152 features (and C = 7)"
NAMELESS = f"{THOUSAND}, no names"
NAME_BYTES = len("train/melanoma/ISIC_0024306.jpg")
# params 40, witness 12, view 2; and for every 8 views a key of 16, a first_row of 8, a name.
BYTES_A_VIEW_BESIDE_THE_PAYLOAD = 54 + (16 + 8 + NAME_BYTES) / 8
# The manifest with 1,000 classes and their prompts, HDF5's own, and up to a page for each large object.
MOST_BYTES_A_FILE = 100_000


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:
    """The benchmark as a module."""
    return load_script("cache_speed")


@pytest.fixture(scope="module")
def tables(run_script: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    """First word of each title -> the cells of the lines below it, as the smallest run prints them."""
    folder = tmp_path_factory.mktemp("work")
    done = run_script("cache_speed", "--rounds", 31, "--rows", 1024, "--folder", folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert list(folder.iterdir()) == []
    machine, *titled = done.stdout.split("\n### ")
    assert all(word in machine for word in ("cores", "Python", "numpy", "h5py", "HDF5", "zlib"))
    return {
        text.split()[0]: [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
        for text in titled
    }


def test_every_kind_of_file_has_its_line_in_every_table(tables: dict[str, list[list[str]]]) -> None:
    assert {title: [cells[0] for cells in lines] for title, lines in tables.items()} == {
        "Gather": [SEVEN, THOUSAND, EMBEDDED],
        "Verify": [SEVEN, THOUSAND, EMBEDDED],
        "File": [SEVEN, THOUSAND, NAMELESS, EMBEDDED],
    }
    sizes = [cells[1:3] for cells in tables["Gather"]]
    assert sizes == [["float32", "8,192"], ["float16", "1,024"], ["float16", "1,024"]]


def test_a_ratio_stands_in_its_interval(tables: dict[str, list[list[str]]]) -> None:
    ratios = [cells[5] for cells in tables["Gather"]] + [cells[at] for cells in tables["Verify"] for at in (4, 6)]
    for ratio in ratios:
        found = re.fullmatch(r"(\d+\.\d\d) \((\d+\.\d\d)-(\d+\.\d\d)\)", ratio)
        assert found, ratio
        median, low, high = map(float, found.groups())
        assert 0 < low <= median <= high


def test_a_file_is_its_payload_61_bytes_a_view_and_a_manifest(tables: dict[str, list[list[str]]]) -> None:
    payload_a_view = {SEVEN: 28, THOUSAND: 2000, NAMELESS: 2000, EMBEDDED: 28 + 2304}
    for name, *numbers, ratio, bytes_a_view in tables["File"]:
        rows, n_bytes, payload = (int(number.replace(",", "")) for number in numbers)
        assert payload == rows * payload_a_view[name]
        beside = BYTES_A_VIEW_BESIDE_THE_PAYLOAD - (NAME_BYTES / 8 if name == NAMELESS else 0)
        assert 0 < n_bytes - payload - rows * beside < MOST_BYTES_A_FILE
        assert float(ratio) == pytest.approx(n_bytes / payload, abs=1e-4)
        assert float(bytes_a_view.replace(",", "")) == pytest.approx(n_bytes / rows, abs=0.1)


def test_the_ratio_is_one_of_medians(script: Any) -> None:
    wall_s = np.array([[2.0, 1.0]] * 30 + [[900.0, 1.0]])
    assert script.Times(wall_s).ratio() == "2.00 (2.00-2.00)"
    assert script.Times(wall_s).ratio(1, 0) == "0.50 (0.50-0.50)"
    assert script.Times(wall_s).median_s == [2.0, 1.0]


def test_other_rows_and_damage_end_the_run(script: Any) -> None:
    rows = np.ones((2, 3), np.float32)
    script._check_equal([rows, rows.copy()])
    for other in (rows + 1, rows.astype(np.float16), rows[:1]):
        with pytest.raises(SystemExit, match="other rows"):
            script._check_equal([rows, other])
    script._check_sound([[], 1, []])
    damage = [("logits/0", 0, 511)]
    for results in ([damage, 1, []], [[], 1, damage]):
        with pytest.raises(SystemExit, match="damaged"):
            script._check_sound(results)


@pytest.mark.parametrize("words", [["--rounds", "30"], ["--rows", "250"], ["--rows", "257"]])
def test_too_few_rounds_or_rows_are_usage(
    words: list[str], script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cache_speed.py", *words])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 2
    assert f"{words[0]} is {words[1]}, expected" in capsys.readouterr().err
