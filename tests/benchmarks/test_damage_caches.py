"""The campaign in small: every object hit once, all noticed; and proof that it sees what is not noticed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cache import CacheReader, guard
from cache.errors import CacheDamaged
from cache.verify import refuse_damaged

COUNTS = (
    "refused at opening", "refused at training's start", "refused by verify", "undetected", "silently wrong",
    "ill told",
)  # fmt: skip
BIG = ("features/embedding", "logits/0", "rows/params", "rows/witness")
SEALED = (
    *(f"crc32/{name}" for name in BIG), "manifest", "rows/view", "samples/first_row", "samples/key", "samples/name",
    "seal", "HDF5 superblock", "HDF5 object headers",
)  # fmt: skip
CUTS = ("to 0 bytes", "by 1 byte", "inside each object", "to a random length")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


def nothing() -> None:
    pass


def verify_nothing() -> None:
    CacheReader.verify = lambda reader: None


def verify_rows_only() -> None:
    CacheReader.verify = lambda reader: refuse_damaged(reader.path, reader.damaged_blocks(BIG))


def start_training_unchecked() -> None:
    CacheReader.verify_objects = lambda reader, names: None


class EqualToAll:
    def __ne__(self, other: object) -> bool:
        return False


def break_the_seal() -> None:
    guard.seal_of = lambda specs, bytes_of: EqualToAll()


def crash() -> None:
    damaged_blocks = CacheReader.damaged_blocks

    def abort_if_damaged(reader: CacheReader, names: Any = None) -> list[Any]:
        return damaged_blocks(reader, names) and os.abort()

    CacheReader.damaged_blocks = abort_if_damaged


def give_no_reason() -> None:
    def verify(reader: CacheReader) -> None:
        if reader.damaged_blocks():
            raise CacheDamaged(f"{reader.path} is damaged")

    CacheReader.verify = verify


def name_other_rows() -> None:
    damaged_blocks = CacheReader.damaged_blocks

    def other_blocks(reader: CacheReader, names: Any = None) -> list[Any]:
        return [(name, first + 512, last + 512) for name, first, last in damaged_blocks(reader, names)]

    CacheReader.damaged_blocks = other_blocks


# What is broken, and columns that count all damages of these places then; every other column of OFF counts none.
SABOTAGES: list[tuple[Callable[[], None], dict[str, tuple[str, ...]]]] = [
    (nothing, {}),
    (verify_nothing, {"undetected": (*BIG, "unused gaps"), "silently wrong": BIG}),
    (verify_rows_only, {"undetected": ("unused gaps",)}),
    (start_training_unchecked, {"silently wrong": BIG[1:]}),
    (crash, {"ill told": (*BIG, "unused gaps")}),
    (give_no_reason, {"ill told": (*BIG, "unused gaps")}),
    (name_other_rows, {"ill told": (*BIG, "unused gaps")}),
    (break_the_seal, {"undetected": ("samples/name", "seal"), "silently wrong": ("samples/name",)}),
]


def test_a_bit_flipped_anywhere_and_a_cut_anywhere_are_noticed(tmp_path: Path, run_script: Callable[..., Any]) -> None:
    counts_file = tmp_path / "counts.json"
    done = run_script("damage_caches", "--flips", 1, "--truncations", 1, "--json", counts_file)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(counts_file.read_text("utf-8"))
    assert counts["details"] == []
    assert set(counts["places"]) == {*SEALED, *BIG, "unused gaps", *CUTS}
    for place, line in counts["places"].items():
        assert line["damages"] >= (1 if place == "unused gaps" else 2), place
        opening = 0 if place in (*BIG, "unused gaps") else line["damages"]
        training = 0 if place in ("features/embedding", "unused gaps") else line["damages"]
        assert [line[name] for name in COUNTS] == [opening, training, line["damages"], 0, 0, 0], place
    assert "| logits/0 | 2 | 0 | 2 | 2 | 0 | 0 | 0 |" in done.stdout
    assert "| to 0 bytes | 2 | 2 | 2 | 2 | 0 | 0 | 0 |" in done.stdout


@pytest.mark.parametrize(("sabotage", "expected"), SABOTAGES)
def test_the_campaign_counts_the_damage_of(
    sabotaged: dict[str, Any], sabotage: Callable[[], None], expected: dict[str, tuple[str, ...]]
) -> None:
    counted = sabotaged[sabotage.__name__]
    for column in ("undetected", "silently wrong", "ill told"):
        for place, line in counted["places"].items():
            if place in expected.get(column, ()):
                assert line[column] == line["damages"] > 0, (column, place, counted["details"])
            elif sabotage is not break_the_seal:  # without it, some other damages are noticed and some are not
                assert line[column] == 0, (column, place, counted["details"])
    assert bool(counted["details"]) == bool(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--flips", "0"], "expected 1 or more, got --flips 0"),
        (["--truncations", "0"], "--truncations 0"),
        (["--folder", "."], "choose another --folder"),
    ],
)
def test_the_campaign_refuses(words: list[str], message: str, refusal: Callable[..., str]) -> None:
    assert message in refusal("damage_caches", words)


def counter(load: Callable[[str], Any], folder: Path) -> Callable[..., object]:
    """`count(_)`: each object of one cache hit once."""
    damage_caches, specimens_of = load("damage_caches"), load("reliability.specimens")
    specimens_of.MERGED_SAMPLES = 150
    specimens = {"merged": specimens_of.dissect(specimens_of.merged_cache(folder), "merged")}

    def count(_: object) -> object:
        report = damage_caches.campaign(folder, specimens, 1, 1, seed=0)
        lines = {place: report.line([place]) for place in [*specimens["merged"].spans, *CUTS]}
        return {"places": lines, "details": report.details}

    return count
