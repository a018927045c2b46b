"""A disk that fills up while a run is saved: the old state stays, the message says how to go on, and going on works."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from cache import durable
from pipeline.runs import RunFolder

from .run_metrics import metrics

Cli = Callable[..., tuple[int, str, str]]
FileLimit = Callable[[int], AbstractContextManager[None]]
STUDENT = ("--student", "shufflenet_v2_x0_5", "--student-size", 32, "--epochs", 2, "--batch-size", 8, "--workers", 0)


@pytest.fixture
def fills_up(monkeypatch: pytest.MonkeyPatch, file_limit: FileLimit) -> Callable[[str, int], list[int]]:
    """`fills_up(name, n)`: from the n-th write of a file on, the kernel refuses its last byte; gives the sizes met."""
    write = durable.write_atomic

    def fills_up(name: str, n_writes: int) -> list[int]:
        n_left, refused = n_writes, list[int]()

        def writing(path: Path, content: bytes) -> None:
            nonlocal n_left
            n_left -= path.name == name
            if path.name != name or n_left > 0:
                return write(path, content)
            refused.append(len(content))
            with file_limit(len(content) - 1):
                return write(path, content)

        monkeypatch.setattr(durable, "write_atomic", writing)
        return refused

    return fills_up


@pytest.fixture
def command(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run a command line that also stands where a process has it, which is what the line that goes on is made of."""

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["softlabel", *map(str, words)])
        return cli(*words)

    return command


def line_that_goes_on(result: tuple[int, str, str], refused: list[int], folder: Path) -> list[str]:
    """The words of the line at the end of the error, after the name of the command; the error names the bytes."""
    code, out, err = result
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    error = err[err.index("Error: ") :]
    assert f"no room for {refused[-1]:,} bytes in {folder} (" in error
    assert len(error.strip().splitlines()) == 2, error
    words = shlex.split(error.strip().splitlines()[-1])
    assert words[0] == "softlabel"
    return words[1:]


@pytest.mark.parametrize(
    ("name", "n_writes", "epoch"),
    [
        ("last.pt", 2, 0),
        ("last.pt", 3, 1),
        ("best.pt", 1, 1),
        ("metrics.csv", 1, 0),
        ("classes.json", 3, 2),
    ],
)
def test_a_full_disk_keeps_the_last_state_and_going_on_ends_as_if_nothing_had_happened(
    name: str, n_writes: int, epoch: int, command: Cli, fills_up: Callable[[str, int], list[int]],
    tiny_data: Path, tiny_cache: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, refused = tmp_path / "run", fills_up(name, n_writes)
    words = ("train", tiny_data, tiny_cache, "-o", run, *STUDENT)
    again = line_that_goes_on(command(*words), refused, run)
    assert again == [*map(str, words), "--resume"]
    assert RunFolder(run).load_last()["epoch"] == epoch
    assert not [path.name for path in run.iterdir() if path.name.endswith(durable.TEMP_SUFFIX)]
    # Still no room: nothing gets worse.
    if name == "last.pt" and epoch == 0:
        assert line_that_goes_on(command(*again), refused, run) == again
        assert RunFolder(run).load_last()["epoch"] == epoch
    monkeypatch.undo()
    code, _, err = command(*again)
    assert code == 0, err
    assert_same_run(run, tiny_run)


def test_a_disk_that_is_full_from_the_start_leaves_nothing_and_the_same_line_starts_again(
    command: Cli, fills_up: Callable[[str, int], list[int]], tiny_data: Path, tiny_cache: Path, tiny_run: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, refused = tmp_path / "run", fills_up("last.pt", 1)
    words = ("train", tiny_data, tiny_cache, "-o", run, *STUDENT)
    again = line_that_goes_on(command(*words), refused, run)
    assert again == [*map(str, words)]
    assert not run.exists()
    monkeypatch.undo()
    assert command(*again)[0] == 0
    assert_same_run(run, tiny_run)


def test_a_disk_without_room_for_the_runs_folder_names_the_bytes(
    command: Cli, tiny_data: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def full(path: Path, *options: int, **named: int) -> None:
        if path.name == "run":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        make(path, *options, **named)

    monkeypatch.setattr(Path, "mkdir", full)
    code, _, err = command("train", tiny_data, tiny_cache, "-o", tmp_path / "run", *STUDENT)
    assert code == 1
    assert f"no room for 4,096 bytes in {tmp_path / 'run'}" in err
    assert f"softlabel train {tiny_data}" in err.splitlines()[-1]


def assert_same_run(run: Path, other: Path) -> None:
    assert metrics(run) == metrics(other)
    assert {path.name for path in run.iterdir()} == {path.name for path in other.iterdir()}
    for name in ("last.pt", "best.pt"):
        one, two = (torch.load(path / name, weights_only=True)["model"] for path in (run, other))
        assert one.keys() == two.keys()
        assert all(torch.equal(weights, two[key]) for key, weights in one.items())
