"""The storm in small: a few pushes and pulls, all done; and proof that it sees damage where there is some."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cache.store import Store

DAMAGES = ("lost", "half or wrong", "told badly", "hung", "left over")


def test_a_small_storm_loses_nothing(tmp_path: Path, run_script: Callable[..., Any]) -> None:
    counts_file = tmp_path / "counts.json"
    done = run_script("store_storm", "--smoke", "--json", counts_file, "--folder", tmp_path / "work")
    assert done.returncode == 0, done.stdout + done.stderr
    total = json.loads(counts_file.read_text("utf-8"))["total"]
    assert {name: total[name] for name in DAMAGES} == dict.fromkeys(DAMAGES, 0)
    assert total["finished"] == total["commands"]
    assert total["starts"] >= 4
    assert "| s3 | push |" in done.stdout


@pytest.fixture(scope="module")
def storm(load_script: Callable[[str], Any]) -> Any:
    """The script as a module."""
    return load_script("store_storm")


@pytest.fixture(scope="module")
def world(storm: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two caches and two stores."""
    world = storm.World(tmp_path_factory.mktemp("storm") / "world", n_small=1, n_large=0)
    yield world
    world.close()


@pytest.fixture
def calm(storm: Any, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Path]:
    """(world, storm, data object) after one push to a new folder."""
    world.urls["folder"] = str(tmp_path / "store")
    for path in world.folder.glob("end-*"):
        path.unlink()
    for name, value in world.environment(world.port).items():
        monkeypatch.setenv(name, value)
    made = storm.Storm(world, storm.Report(*storm.COLUMNS), 0, 0.0)
    source, content_id = world.sources[0]
    entry = Store(world.urls["folder"]).push(source).entry
    made.done.add(storm.Job(0, "folder", "push", source, content_id, tmp_path / "out.h5"))
    return world, made, Path(world.urls["folder"], entry.data_name)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: None, {}),
        (lambda data: data.write_bytes(bytes(data.stat().st_size)), {"half or wrong": 1, "lost": 1}),
        (lambda data: data.write_bytes(data.read_bytes()[:-1]), {"half or wrong": 2, "lost": 1}),
        (lambda data: next(data.parent.glob("*.json")).unlink(), {"lost": 1}),
        (lambda data: (data.parent / "half.tmp").write_text(""), {"left over": 1}),
    ],
)
def test_the_storm_counts_what_is_wrong_in_the_end(
    storm: Any, calm: tuple[Any, Any, Path], damage: Callable[[Path], Any], expected: dict[str, int]
) -> None:
    world, made, data = calm
    damage(data)
    storm.examine(world, made, made.report)
    found = made.report.line(made.report.rows)
    assert {name: found[name] for name in DAMAGES if found[name]} == expected, made.report.details


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--commands", "3"], "--commands must be at least 8, got 3"),
        (["--at-once", "0"], "--at-once 1 or more"),
        (["--folder", "."], "choose another --folder"),
    ],
)
def test_the_storm_refuses(words: list[str], message: str, refusal: Callable[..., str]) -> None:
    assert message in refusal("store_storm", words)
