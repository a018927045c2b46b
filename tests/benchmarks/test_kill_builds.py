"""The campaign in small: each step once, all clean; and proof that it sees damage where there is some."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cache import CacheReader, durable
from cache.errors import CacheBusy
from cache.fill import NewFile

DAMAGES = (
    "rows lost", "silently wrong rows", "failed resumes", "leftovers", "unopenable finals", "processes left",
    "not reached",
)  # fmt: skip
OUT_NAME = "t.h5"


def publish_before_writing() -> None:
    start = NewFile.__init__

    def start_and_publish(new: NewFile, temp: Path, specs: Any) -> None:
        start(new, temp, specs)
        if not temp.name.startswith(OUT_NAME):
            os.link(temp, temp.with_name(temp.name.partition(".")[0] + ".h5"))

    NewFile.__init__ = start_and_publish


def write_after_publishing_and_trust_parts() -> None:
    seal, publish = NewFile.seal, durable.publish_new
    late: dict[Path, tuple[int, bytes]] = {}

    def seal_without_logits(new: NewFile, manifest: Any) -> None:
        spec, offset = new.extents["logits/0"]
        content = new.get("logits/0", 0, spec.shape[0]).tobytes() if new.temp.name[:4] != OUT_NAME else b""
        seal(new, manifest)
        late[new.temp] = (offset, content)
        overwrite(new.temp, offset, bytes(len(content)))

    def publish_and_write(temp: Path, final: Path) -> bool:
        is_new = publish(temp, final)
        overwrite(final, *late[temp])
        return is_new

    NewFile.seal, durable.publish_new = seal_without_logits, publish_and_write
    CacheReader.verify = lambda reader: None


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def acknowledge_before_publishing() -> None:
    publish, waiting = durable.publish_new, list[tuple[Path, Path]]()

    def publish_the_one_before(temp: Path, final: Path) -> bool:
        if final.name == OUT_NAME:
            return publish(temp, final)
        waiting.append((temp.rename(temp.with_suffix(".late")), final))
        return len(waiting) < 2 or publish(*waiting.pop(0))

    durable.publish_new = publish_the_one_before


def lock_by_the_name_alone() -> None:
    acquire = durable.Lock.acquire

    def acquire_if_absent(path: Path) -> durable.Lock:
        if path.exists():
            raise CacheBusy(f"{path} exists")
        return acquire(path)

    durable.Lock.acquire = staticmethod(acquire_if_absent)


def leave_the_lock_file() -> None:
    remove = durable.remove
    durable.remove = lambda path: None if path.name == "lock" else remove(path)


def start_a_process_that_stays() -> None:
    acquire = durable.Lock.acquire

    def start_and_acquire(path: Path) -> durable.Lock:
        subprocess.Popen(["sleep", "60"])
        return acquire(path)

    durable.Lock.acquire = staticmethod(start_and_acquire)


# What is broken, the step that shows it, what must be counted there (and may be counted elsewhere, too).
SABOTAGES: list[tuple[Callable[[], None], str, list[str]]] = [
    (publish_before_writing, "segment half written", ["unopenable finals"]),
    (
        write_after_publishing_and_trust_parts,
        "segment published, temp still there",
        ["silently wrong rows", "unopenable finals"],
    ),
    (acknowledge_before_publishing, "merge allocated", ["rows lost"]),
    (lock_by_the_name_alone, "segment allocated", ["failed resumes"]),
    (start_a_process_that_stays, "lock taken", ["processes left"]),
    (leave_the_lock_file, "folder removed", ["leftovers", "not reached"]),
]


# One of each kind; tests/cache kills a writer at every step, the campaign by hand a build.
STEPS = (
    "plan written", "segment half written", "segment published, temp still there", "merge half written",
    "merge published, temp still there", "merge about to replace", "middle part removed", "folder removed",
)  # fmt: skip


def test_a_build_killed_at_a_step_loses_nothing(tmp_path: Path, run_script: Callable[..., Any]) -> None:
    counts_file = tmp_path / "counts.json"
    steps = [word for step in STEPS for word in ("--step", step)]
    work = ("--json", counts_file, "--folder", tmp_path / "work")
    done = run_script("kill_builds", *steps, "--kills", len(STEPS), *work)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(counts_file.read_text("utf-8"))
    assert sorted(counts["steps"]) == sorted(STEPS)
    for step, line in counts["steps"].items():
        assert line == {"kills": 1, **dict.fromkeys(DAMAGES, 0)}, step
        assert f"| {step} | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |" in done.stdout
    assert counts["total"]["kills"] == len(STEPS)
    assert list((tmp_path / "work" / "trials").iterdir()) == []


@pytest.mark.parametrize(("sabotage", "step", "damages"), SABOTAGES)
def test_the_campaign_counts_the_damage_of(
    sabotaged: dict[str, Any], sabotage: Callable[[], None], step: str, damages: list[str]
) -> None:
    counts = sabotaged[sabotage.__name__]
    assert all(counts[damage] > 0 for damage in damages), counts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kills", "22"], "at least one for each of 23 steps, got 22"),
        (["--step", "lunch"], "invalid choice: 'lunch'"),
        (["--folder", "."], "choose another --folder"),
    ],
)
def test_the_campaign_refuses(words: list[str], message: str, refusal: Callable[..., str]) -> None:
    assert message in refusal("kill_builds", words)


def counter(load: Callable[[str], Any], folder: Path) -> Callable[..., object]:
    """`count(step, _)`: two builds killed at this step."""
    torch.set_num_threads(1)
    kill_builds = load("kill_builds")
    load("reliability.plans").SHARE_WITH_WORKERS = 0.0  # they start slowly
    load("reliability.forks").ORPHAN_S = 1.0
    world = kill_builds.World(folder)

    def count(step: str, _: list[str]) -> object:
        world.trials = folder / "trials" / step
        report, _scenarios = kill_builds.campaign(world, 2, 0, [step])
        return report.line([step])

    return count
