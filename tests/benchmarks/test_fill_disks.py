"""The campaign in small: a few full disks, all survived; and proof that it sees damage where there is some.

As a script (argument: a new folder) this file is the second half: it runs the campaign against a sabotaged `cache
merge`, on a limit on each file's bytes, which every POSIX system has, and writes what was counted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache import Manifest, Table, durable
from cache.errors import CacheDiskFull
from cache.fill import write_table
from pipeline.commands import cache as cache_commands

CAMPAIGN = Path(__file__).resolve().parents[2] / "benchmarks" / "fill_disks.py"
COMMANDS = ("build", "build, extending", "train")
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


def run_script(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, timeout=300, capture_output=True, text=True, check=False, env=environment)


def test_a_full_disk_ends_a_command_in_one_line_that_goes_on(tmp_path: Path) -> None:
    counts_file = tmp_path / "counts.json"
    commands = [word for name in COMMANDS for word in ("--command", name)]
    done = run_script(CAMPAIGN, *commands, "--trials", 1, "--own-processes", 0, "--json", counts_file)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(counts_file.read_text("utf-8"))
    assert counts["details"] == []
    assert [row["command"] for row in counts["rows"]] == [*COMMANDS, "cache info", "cache verify"]
    for row in counts["rows"]:
        assert (row[TOLD], row[LOST], row[LEFT], row[FINISHED]) == (1, 0, 0, 1), row
    assert "| **all** |  | 5 | 5 | 0 | 0 | 5 |" in done.stdout


@pytest.fixture(scope="module")
def sabotaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name of a sabotage -> what was counted with it."""
    folder = tmp_path_factory.mktemp("sabotage") / "work"
    done = run_script(__file__, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    counts: dict[str, Any] = json.loads((folder / "counts.json").read_text("utf-8"))
    return counts


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
        (["--disk", str(CAMPAIGN.parent)], "is not an empty folder"),
    ],
)
def test_the_campaign_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        load_campaign().parse(words)
    assert message in capsys.readouterr().err


def test_the_campaign_refuses_to_fill_a_large_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_disks = load_campaign()
    fill_disks.LARGEST_DISK_BYTES = 1
    with pytest.raises(SystemExit, match="2"):
        fill_disks.parse(["--disk", str(tmp_path)])
    assert "expected 1 at most" in capsys.readouterr().err


def load_campaign() -> Any:
    """The script as a module; by its own name, so that its dataclasses find it."""
    spec = importlib.util.spec_from_file_location("fill_disks", CAMPAIGN)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["fill_disks"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_cache(path: Path, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    identity = {
        "tasks": [{"name": "class", "classes": ["mel", "nv"]}], "view_columns": ["x"], "precision": "fp32",
    }  # fmt: skip
    table = Table(
        key=np.unique(generator.integers(0, 256, (100, 16), dtype=np.uint8), axis=0),
        first_row=np.arange(101, dtype="<u8"),
        view=np.zeros(100, "<u2"),
        params=generator.random((100, 1)).astype("<f4"),
        witness=generator.integers(0, 256, (100, 12), dtype=np.uint8),
        logits={"class": generator.normal(size=(100, 2)).astype("<f4")},
    )
    write_table(path, Manifest(identity, {}), table)
    return path


def count_sabotages(folder: Path) -> None:
    fill_disks = load_campaign()
    root = folder / "disk"
    root.mkdir(parents=True)
    disk = fill_disks.FileLimit(root)
    start = {name: small_cache(folder / name, seed) for seed, name in enumerate(("a.h5", "b.h5"))}
    words = ["cache", "merge", str(root / "a.h5"), str(root / "b.h5"), "-o", str(root / "m.h5")]
    scenario = fill_disks.Scenario("merge", root / "m.h5", words, start, fill_disks.content_of_cache)
    trial = fill_disks.Trial(fill_disks.World(folder, disk), scenario)
    merge = next(write for write in trial.writes if write.name == "m.h5")
    command, counts = fill_disks._command, {}
    for sabotage, _ in SABOTAGES:

        def sabotaged_command(*args: Any, sabotage: Callable[[], None] = sabotage) -> None:
            sabotage()
            command(*args)

        # The commands are sabotaged, each in its own process; the campaign that looks at them is not.
        fill_disks._command = sabotaged_command
        report = fill_disks.Report()
        for free_bytes in (merge.n_bytes // 2, merge.n_bytes - 1):
            trial.run(report, merge, fill_disks.Squeeze(fill_disks.FROM_THE_START, free_bytes))
        counts[sabotage.__name__] = {"line": report.line(list(report.trials)), "details": report.details}
    (folder / "counts.json").write_text(json.dumps(counts), "utf-8")


if __name__ == "__main__":
    count_sabotages(Path(sys.argv[1]))
