"""The campaign in small: a few full disks, all survived; and proof that it sees damage where there is some."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cache import durable
from cache.errors import CacheDiskFull
from pipeline.commands import cache as cache_commands

COMMANDS = ("build", "build, extending")
TOLD, LOST, LEFT, FINISHED = "exit 1 with bytes", "sealed work lost", "left over", "finished after freeing"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks, and fills disks by POSIX means")


def nothing() -> None:
    pass


def name_no_bytes() -> None:
    @contextmanager
    def disk_errors(path: Path, needed_bytes: int) -> Iterator[None]:
        yield

    durable.disk_errors = disk_errors


def name_other_bytes() -> None:
    disk_errors = durable.disk_errors
    durable.disk_errors = lambda path, needed_bytes: disk_errors(path, needed_bytes + 1_000_000)


def crash() -> None:
    CacheDiskFull.__init__ = lambda error, *_: os.abort()


def free_some_space_at_the_users_cost() -> None:
    allocate = durable.allocate

    def allocate_or_remove(fd: int, size_bytes: int) -> None:
        try:
            allocate(fd, size_bytes)
        except OSError:
            (Path(sys.argv[-1]).parent / "a.h5").write_bytes(b"")
            raise

    durable.allocate = allocate_or_remove


def leave_everything() -> None:
    durable.remove = lambda path: None


def tell_another_command() -> None:
    cache_commands.same_command = lambda: "softlabel cache merge nothing.h5 -o m.h5"


# What is broken, and what two trials must count.
SABOTAGES: list[tuple[Callable[[], None], dict[str, int]]] = [
    (nothing, {TOLD: 2, LOST: 0, LEFT: 0, FINISHED: 2}),
    (name_no_bytes, {TOLD: 0, LOST: 0, LEFT: 0}),
    (name_other_bytes, {TOLD: 0, LOST: 0, LEFT: 0, FINISHED: 2}),
    (crash, {TOLD: 0, FINISHED: 0}),
    (free_some_space_at_the_users_cost, {LOST: 2, LEFT: 0, FINISHED: 0}),
    (leave_everything, {TOLD: 2, LOST: 0, LEFT: 2}),
    (tell_another_command, {LOST: 0, LEFT: 0, FINISHED: 0}),
]


def test_a_full_disk_ends_a_command_in_one_line_that_goes_on(tmp_path: Path, run_script: Callable[..., Any]) -> None:
    counts_file = tmp_path / "counts.json"
    commands = [word for name in COMMANDS for word in ("--command", name)]
    done = run_script("fill_disks", *commands, "--trials", 1, "--own-processes", 0, "--json", counts_file)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(counts_file.read_text("utf-8"))
    assert counts["details"] == []
    assert [row["command"] for row in counts["rows"]] == [*COMMANDS, "cache info", "cache verify"]
    for row in counts["rows"]:
        assert (row[TOLD], row[LOST], row[LEFT], row[FINISHED]) == (1, 0, 0, 1), row
    assert "| **all** |  | 4 | 4 | 0 | 0 | 4 |" in done.stdout


@pytest.mark.parametrize(("sabotage", "expected"), SABOTAGES)
def test_the_campaign_counts_the_damage_of(
    sabotaged: dict[str, Any], sabotage: Callable[[], None], expected: dict[str, int]
) -> None:
    counted = sabotaged[sabotage.__name__]
    assert counted["line"]["trials"] == 2
    assert {name: counted["line"][name] for name in expected} == expected, counted["details"]
    assert bool(counted["details"]) == (sabotage is not nothing)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "0"], "--trials must be 1 or more, got 0"),
        (["--command", "lunch"], "invalid choice: 'lunch'"),
        (["--disk", str(Path(__file__).parent)], "is not an empty folder"),
    ],
)
def test_the_campaign_refuses(words: list[str], message: str, refusal: Callable[..., str]) -> None:
    assert message in refusal("fill_disks", words)


def test_the_campaign_refuses_to_fill_a_large_disk(
    tmp_path: Path, load_script: Callable[[str], Any], refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_script("fill_disks"), "LARGEST_DISK_BYTES", 1)
    assert "expected 1 at most" in refusal("fill_disks", ["--disk", str(tmp_path)])


def counter(load: Callable[[str], Any], folder: Path) -> Callable[..., object]:
    """`count(_)`: two full disks for a `cache merge`."""
    fill_disks, random_cache = load("fill_disks"), load("reliability.specimens").random_cache
    root = folder / "disk"
    root.mkdir()
    start = {name: random_cache(folder / name, number, 100) for number, name in enumerate(("a.h5", "b.h5"))}
    words = ["cache", "merge", str(root / "a.h5"), str(root / "b.h5"), "-o", str(root / "m.h5")]
    result = load("reliability.contents").content_of_cache
    scenario = fill_disks.Scenario("merge", root / "m.h5", words, start, result)
    trial = fill_disks.Trial(fill_disks.World(folder, fill_disks.FileLimit(root)), scenario)
    merge = next(write for write in trial.writes if write.name == "m.h5")

    def count(_: object) -> object:
        report = fill_disks.DiskReport()
        for free_bytes in (merge.n_bytes // 2, merge.n_bytes - 1):
            trial.run(report, merge, fill_disks.Squeeze(fill_disks.FROM_THE_START, free_bytes))
        return {"line": report.line(report.rows), "details": report.details}

    return count
