"""Kill `softlabel cache build` with SIGKILL at every step, repeat the command, and count what is lost.

Never mends anything between a kill and the next start. The builds are forked from this process, which has imported
everything, so that one costs less than half a second. Run: OMP_NUM_THREADS=1 python benchmarks/kill_builds.py
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pipeline.build  # noqa: F401 (forked builds find it imported)
from cache import CacheReader, SegmentedWriter, durable
from cache.errors import CacheError
from cache.fill import NewFile
from cache.workspace import LOCK_NAME, PLAN_NAME, SEGMENT_SUFFIX, Workspace
from data.samples import FOLDER_TASK, scan_folder
from pipeline.cli import run
from pipeline.demo.lesions import write_lesions
from pipeline.teachers.fit import SmallSiglip, new_siglip
from pipeline.teachers.prompts import default_prompts

Pair = tuple[bytes, int]

ANY_MOMENT = "any moment"
EARLY_STEPS = (
    "lock taken", "plan written",
    "segment allocated", "segment half written", "segment written, not synced", "segment synced, not published",
    "segment published, temp still there", "segment's temp removed",
)  # fmt: skip
NEW_FILE_STEPS = ("merge published, temp still there", "merge's temp removed")
REPLACE_STEPS = ("merge about to replace", "merge has replaced")
LATE_STEPS = (
    "merge allocated", "merge half written", "merge written, not synced", "merge synced, not published",
    *NEW_FILE_STEPS, *REPLACE_STEPS,
    "first part removed", "middle part removed", "last part removed", "plan removed", "lock file removed",
    "folder removed",
)  # fmt: skip
# In the order in which a build passes them: a chain of kills in this order reaches each of them.
STEPS = (*EARLY_STEPS, *LATE_STEPS, ANY_MOMENT)
ANY_MOMENT_SHARES = 3

SEGMENT_ROWS = 16
VIEWS = 4
BROKEN_IMAGE = Path("train", "melanoma", "00000.png")
HANG_S = 120.0
# A loader's worker looks for its parent every 5 s, once it has started, which takes about as long.
ORPHAN_S = 30.0
POLL_S = 0.004
SHARE_WITH_WORKERS = 0.04
DAMAGES = (
    "rows lost",
    "silently wrong rows",
    "failed resumes",
    "leftovers",
    "unopenable finals",
    "processes left",
    "not reached",
)


@dataclass(frozen=True)
class Scenario:
    """What changes between a kill and the resume: the images, or nothing."""

    name: str
    images: str
    """The image set of the first start; the folder keeps its path."""
    later_images: str
    base: str = ""
    """The reference cache that is extended; none for a fresh build."""


SCENARIOS = (
    Scenario("fresh build", "some", "some"),
    Scenario("images added", "some", "all"),
    Scenario("images removed", "all", "some"),
    Scenario("broken image repaired", "broken", "some"),
    Scenario("extended by views", "some", "some", base="one view"),
    Scenario("extended by images", "all", "all", base="some"),
)


@dataclass(frozen=True)
class Kill:
    """Where a build dies."""

    step: str
    passage: int = 1
    """The how-manieth passage of the step."""
    after_frac: float = 0.0
    """For any moment: share of the time that an undisturbed build takes."""


@dataclass(frozen=True)
class Plan:
    """One trial: kills, changes ("change") and full runs ("run") in order; it ends with a run."""

    number: int
    scenario: Scenario
    actions: tuple[Kill | str, ...]
    workers: bool

    @property
    def steps(self) -> list[str]:
        """Where it kills, in order."""
        return [action.step for action in self.actions if isinstance(action, Kill)]


class Plug:
    """Lives in the build's process: keeps a journal of what it does, and pulls the plug at one named step."""

    def __init__(self, out: Path, journal: Path, kill: Kill | None) -> None:
        self._out, self._workspace, self._kill = out, Workspace(out), kill
        self._journal_fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._passages = self._parts_removed = 0
        self._file = self._publishing = ""

    def install(self) -> None:
        """Wrap the functions that make the steps, in this process."""
        passed = self._passed
        wrap(durable.Lock, "acquire", after=lambda *_: passed("lock taken"))
        wrap(durable, "write_atomic", after=lambda path, *_: path.name == PLAN_NAME and passed("plan written"))
        wrap(NewFile, "__init__", before=self._file_starts)
        wrap(durable, "allocate", after=lambda *_: passed(f"{self._file} allocated"))
        wrap(NewFile, "put", before=self._put_starts)
        wrap(
            durable, "fsync_file",
            before=lambda *_: passed(f"{self._file} written, not synced"),
            after=lambda *_: passed(f"{self._file} synced, not published"),
        )  # fmt: skip
        wrap(durable, "publish_new", before=self._publish_starts, after=self._publish_ends)
        wrap(
            durable, "publish_replace",
            before=lambda temp, final: final == self._out and passed("merge about to replace"),
            after=lambda temp, final: final == self._out and passed("merge has replaced"),
        )  # fmt: skip
        wrap(durable, "remove", before=self._remove_starts, after=self._removed)
        wrap(Path, "rmdir", after=lambda path: path == self._workspace.folder and passed("folder removed"))
        wrap(SegmentedWriter, "__enter__", after=lambda *_: self._note(entered=digests(self._out)))
        wrap(SegmentedWriter, "add", before=lambda _, key, views, **__: self._note(add=[key.hex(), views.tolist()]))
        wrap(SegmentedWriter, "seal", after=lambda *_: self._note(sealed=True))

    def _note(self, **entry: Any) -> None:
        os.write(self._journal_fd, json.dumps(entry).encode() + b"\n")

    def _is_due(self, step: str) -> bool:
        if self._kill is None or self._kill.step != step:
            return False
        self._passages += 1
        return self._passages == self._kill.passage

    def _passed(self, step: str) -> None:
        if self._is_due(step):
            self._die()

    def _die(self) -> None:
        assert self._kill is not None
        self._note(killed=self._kill.step)
        os.kill(os.getpid(), signal.SIGKILL)

    def _file_starts(self, new: NewFile, temp: Path, specs: Any) -> None:
        self._file = "merge" if temp.name.startswith(self._out.name + ".") else "segment"

    def _put_starts(self, new: NewFile, name: str, array: np.ndarray, first_entry: int = 0) -> None:
        if self._is_due(f"{self._file} half written"):
            new.put(name, array[: len(array) // 2], first_entry)
            self._die()

    def _publish_starts(self, temp: Path, final: Path) -> None:
        self._publishing = self._file

    def _publish_ends(self, temp: Path, final: Path) -> None:
        self._publishing = ""

    def _remove_starts(self, path: Path) -> None:
        if self._publishing:
            self._passed(f"{self._publishing} published, temp still there")

    def _removed(self, path: Path) -> None:
        if self._publishing:
            self._passed(f"{self._publishing}'s temp removed")
        elif path.suffix == SEGMENT_SUFFIX:
            self._parts_removed += 1
            which = "last" if not self._workspace.segments() else "first" if self._parts_removed == 1 else "middle"
            self._passed(f"{which} part removed")
        elif path.name == PLAN_NAME:
            self._passed("plan removed")
        elif path.name == LOCK_NAME:
            self._passed("lock file removed")


def wrap(
    owner: Any, name: str, *, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> None:
    """Call `before` and `after` around a function of a module or class, with its arguments."""
    original = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args, **kwargs)
        result = original(*args, **kwargs)
        if after is not None:
            after(*args, **kwargs)
        return result

    setattr(owner, name, staticmethod(wrapper) if inspect.ismethod(original) else wrapper)


def finals(out: Path) -> list[Path]:
    """Every file that stands under a final name."""
    return [path for path in (out, *Workspace(out).segments()) if path.exists()]


def identity_of(path: Path) -> tuple[str, int] | None:
    """Tells one file from the next one of its name; None if there is none."""
    try:
        return path.name, path.stat().st_ino
    except FileNotFoundError:
        return None


def digests(out: Path) -> dict[str, str]:
    """File name -> sha256 of the bytes, of what stands under final names."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in finals(out)}


def rows_of(path: Path) -> dict[Pair, bytes]:
    """(key, view) -> all bytes of the row."""
    with CacheReader(path) as reader:
        every = slice(0, reader.n_rows)
        arrays = [reader.params(every), reader.witness(every)]
        arrays += [reader.logits(every, task) for task in reader.tasks]
        arrays += [reader.feature(every, name) for name in reader.features]
        table = np.concatenate([array.reshape(reader.n_rows, -1).view(np.uint8) for array in arrays], axis=1)
        owners = [bytes(reader.keys[sample]) for sample in reader.sample_of_row]
        views = reader.view.tolist()
    return {(key, view): row.tobytes() for key, view, row in zip(owners, views, table, strict=True)}


class World:
    """What all trials share: image sets, a teacher, and the caches of undisturbed builds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.teacher, self.trials = folder, folder / "teacher", folder / "trials"
        defaults: dict[str, Any] = SegmentedWriter.__init__.__kwdefaults__ or {}
        assert "segment_rows" in defaults
        defaults["segment_rows"] = SEGMENT_ROWS
        self._write_images()
        self._make_teacher()
        self.build_s = self._reference("all", "all")
        self._reference("some", "some")
        self._reference("one view", "some", "--views", "1")
        self.truth = rows_of(self.cache("all"))

    def images(self, name: str) -> Path:
        """An image set."""
        return self.folder / "images" / name

    def cache(self, name: str) -> Path:
        """The cache of an undisturbed build."""
        return self.folder / "references" / f"{name}.h5"

    def _write_images(self) -> None:
        write_lesions(self.images("all"), {"train": 8, "val": 2}, size_px=32)
        shutil.copytree(self.images("all"), self.images("some"))
        for path in self.images("some").glob("*/*/*.png"):
            if int(path.stem) >= (4 if path.parent.parent.name == "train" else 1):
                path.unlink()
        shutil.copytree(self.images("some"), self.images("broken"))
        (self.images("broken") / BROKEN_IMAGE).write_bytes(b"\x89PNG, half uploaded")

    def _make_teacher(self) -> None:
        prompts = default_prompts(scan_folder(self.images("all")).classes[FOLDER_TASK])
        texts = [text for class_texts in prompts.values() for text in class_texts]
        model = new_siglip(SmallSiglip(size_px=32, patch_px=8, width=32, layers=2, heads=2), texts, self.teacher)
        with torch.no_grad():  # a fresh model's answers are nearly constant, and wrong rows must not look right
            model.vision_model.head.probe.normal_(generator=torch.Generator().manual_seed(0))
        model.save_pretrained(self.teacher)

    def _reference(self, name: str, images: str, *options: str) -> float:
        """Build one cache undisturbed; seconds."""
        out = self.cache(name)
        out.parent.mkdir(exist_ok=True)
        started = time.perf_counter()
        process = start(self.command(self.images(images), out, *options), out.with_suffix(".log"))
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"the undisturbed build failed: {out.with_suffix('.log').read_text('utf-8')}")
        return time.perf_counter() - started

    def command(self, images: Path, out: Path, *options: str) -> list[str]:
        """The arguments of one build; a later option overrides an earlier one."""
        setting = ["--views", str(VIEWS), "--batch-size", "8", "--device", "cpu", "--precision", "fp32"]
        return ["cache", "build", str(images), "-o", str(out), "--teacher", str(self.teacher), *setting, *options]


def start(arguments: list[str], log: Path, plug: tuple[Path, Path, Kill | None] | None = None) -> ForkProcess:
    """Start the real command line in a forked process; `plug` is what Plug takes."""
    process = multiprocessing.get_context("fork").Process(target=_build, args=(arguments, log, plug))
    process.start()
    return process


def _build(arguments: list[str], log: Path, plug: tuple[Path, Path, Kill | None] | None) -> None:
    os.setpgrp()  # so that whatever it starts can be found when it is gone
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream_fd in (1, 2):
        os.dup2(log_fd, stream_fd)
    if plug is not None:
        Plug(*plug).install()
    sys.exit(run(arguments))


class Report:
    """Kills and damage by step."""

    def __init__(self) -> None:
        self.kills: Counter[str] = Counter()
        self.damage: Counter[tuple[str, str]] = Counter()
        self.scenarios: Counter[str] = Counter()
        self.details: list[str] = []

    def count(self, step: str, damage: str, n: int, detail: str) -> None:
        """Note damage done by a kill at a step; nothing if n is 0."""
        if n:
            self.damage[step, damage] += n
            self.details.append(f"{detail}: {damage} {n}")

    def line(self, steps: list[str]) -> dict[str, int]:
        """Column -> number, summed over steps."""
        damage = {name: sum(self.damage[step, name] for step in steps) for name in DAMAGES}
        return {"kills": sum(self.kills[step] for step in steps), **damage}

    def to_table(self, steps: list[str]) -> str:
        """Markdown."""
        lines = {step: self.line([step]) for step in steps} | {"**all**": self.line(steps)}
        rows = [["killed at", *self.line([])], ["---"] * (2 + len(DAMAGES))]
        rows += [[step, *map(str, line.values())] for step, line in lines.items()]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class Orphans:
    """Processes that outlive their build: each build leads a process group, which must be empty after a while."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._groups: dict[int, tuple[float, str, str]] = {}

    def watch(self, group: int, step: str, detail: str) -> None:
        """The leader of this group is gone."""
        self._groups[group] = (time.monotonic() + ORPHAN_S, step, detail)

    def check(self, *, wait: bool) -> None:
        """Count and end those whose time is over; with `wait`, until no group is left."""
        while self._groups:
            for group, (deadline_s, step, detail) in list(self._groups.items()):
                left = members(group)
                if left and time.monotonic() < deadline_s:
                    continue
                self._report.count(step, "processes left", len(left), detail)
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                del self._groups[group]
            if not wait:
                return
            time.sleep(0.1)


def members(group: int) -> list[int]:
    """The living processes of a process group; none where there is no /proc."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone in the meantime
            state, _, its_group = file.read_text("utf-8", "replace").rpartition(")")[2].split()[:3]
            if its_group == str(group) and state not in "ZX":
                found.append(int(file.parent.name))
    return found


class Trial:
    """One output file on its way through kills and resumes."""

    def __init__(self, world: World, plan: Plan, report: Report, orphans: Orphans) -> None:
        self._world, self._plan, self._report, self._orphans = world, plan, report, orphans
        self.folder = world.trials / f"{plan.number:04}"
        self._images, self._out = self.folder / "images", self.folder / "out" / "t.h5"
        self._log = self.folder / "log.txt"
        self._image_set = plan.scenario.images
        self._step = plan.steps[0]
        self._attempts, self._is_resumed = 0, False
        self._standing: dict[Pair, bytes] = {}
        self._digests: dict[str, str] = {}
        self._seen_finals: set[tuple[str, int] | None] = {None}
        self._bad_finals: set[tuple[str, int] | None] = set()

    def run(self) -> None:
        """All actions, then the checks of the end; the folder stays where something was wrong."""
        self._report.scenarios[self._plan.scenario.name] += 1
        self._report.scenarios["with a worker"] += self._plan.workers
        n_details = len(self._report.details)
        self._out.parent.mkdir(parents=True)
        shutil.copytree(self._world.images(self._image_set), self._images)
        if self._plan.scenario.base:
            shutil.copy(self._world.cache(self._plan.scenario.base), self._out)
            self._look()
        for action in self._plan.actions:
            if isinstance(action, Kill):
                self._killed_run(action)
            elif action == "change":
                self._image_set = self._plan.scenario.later_images
                shutil.rmtree(self._images)
                shutil.copytree(self._world.images(self._image_set), self._images)
            else:
                self._full_run()
        if self._is_resumed:
            self._check_end()
        if len(self._report.details) == n_details:
            shutil.rmtree(self.folder)

    def _count(self, damage: str, n: int, detail: str = "") -> None:
        self._report.count(self._step, damage, n, f"{self._where} {detail}")

    @property
    def _where(self) -> str:
        what = f"{self._plan.scenario.name}{', one worker' * self._plan.workers}"
        return f"trial {self._plan.number} ({what}, killed at {'; '.join(self._plan.steps)}), start {self._attempts}"

    def _killed_run(self, kill: Kill) -> None:
        self._step = kill.step
        exit_code, is_killed = self._attempt(kill)
        if is_killed:
            self._report.kills[kill.step] += 1
        elif kill.step != ANY_MOMENT:  # a build may be over before the random moment comes: drawn again
            self._count("not reached", 1, f"exit {exit_code}")
        if not is_killed and exit_code != self._expected_exit:
            self._count("failed resumes", 1, self._last_words())

    def _full_run(self) -> None:
        exit_code, _ = self._attempt(None)
        is_named = self._image_set != "broken" or str(BROKEN_IMAGE) in self._log.read_text("utf-8")
        self._is_resumed = exit_code == self._expected_exit and is_named
        self._count("failed resumes", not self._is_resumed, self._last_words())

    @property
    def _expected_exit(self) -> int:
        return int(self._image_set == "broken")

    def _attempt(self, kill: Kill | None) -> tuple[int | None, bool]:
        """Start the command once, always the same; (exit code, did it die at the step)."""
        self._attempts += 1
        journal = self.folder / f"journal-{self._attempts}.jsonl"
        options = ["--workers", "1"] if self._plan.workers else []
        named_kill = None if kill is None or kill.step == ANY_MOMENT else kill
        process = start(
            self._world.command(self._images, self._out, *options), self._log, (self._out, journal, named_kill)
        )
        kill_after_s = kill.after_frac * self._world.build_s if kill and kill.step == ANY_MOMENT else None
        is_hung = self._watch(process, kill_after_s)
        assert process.pid is not None
        self._orphans.watch(process.pid, self._step, self._where)
        entries = [json.loads(line) for line in journal.read_text("ascii").splitlines()] if journal.exists() else []
        self._compare(entries)
        is_killed = process.exitcode == -signal.SIGKILL and not is_hung
        if named_kill is not None and {"killed": named_kill.step} not in entries:
            is_killed = False
        return process.exitcode, is_killed

    def _watch(self, process: ForkProcess, kill_after_s: float | None) -> bool:
        """Verify whatever comes to stand under a final name while the build runs; True if it had to be ended."""
        started = time.perf_counter()
        while process.is_alive():
            process.join(POLL_S)
            wall_s = time.perf_counter() - started
            if wall_s > HANG_S or (kill_after_s is not None and wall_s >= kill_after_s):
                process.kill()
                process.join()
            self._verify_new_finals()
        return time.perf_counter() - started > HANG_S

    def _verify_new_finals(self) -> None:
        for path in finals(self._out):
            identity = identity_of(path)
            if identity in self._seen_finals:
                continue
            try:
                CacheReader(path).verify()
            except CacheError as error:
                if identity_of(path) != identity:
                    continue  # removed or replaced by the build in the meantime
                self._count_unopenable(path, error)
            self._seen_finals.add(identity)

    def _look(self) -> dict[Pair, bytes]:
        """The rows that stand under final names now; notes them, and wrong ones among them."""
        self._standing, self._digests = {}, digests(self._out)
        for path in finals(self._out):
            try:
                CacheReader(path).verify()
                self._standing |= rows_of(path)
            except CacheError as error:
                del self._digests[path.name]
                self._count_unopenable(path, error)
        wrong = [pair for pair, row in self._standing.items() if row != self._world.truth.get(pair)]
        self._count("silently wrong rows", len(wrong))
        return self._standing

    def _count_unopenable(self, path: Path, error: CacheError) -> None:
        identity = identity_of(path)
        if identity not in self._bad_finals:
            self._count("unopenable finals", 1, str(error))
        self._bad_finals.add(identity)

    def _compare(self, entries: list[dict[str, Any]]) -> None:
        """What stood sealed before this start, or was acknowledged in it, stands now, and was not computed again."""
        before, digests_before = self._standing, self._digests
        now = self._look()
        added: set[Pair] = set()
        acknowledged: set[Pair] = set()
        for entry in entries:
            if "entered" in entry:
                altered = [name for name, digest in digests_before.items() if entry["entered"].get(name) != digest]
                self._count("rows lost", len(altered), "sealed files altered at the start (files)")
            elif "add" in entry:
                key, views = entry["add"]
                added |= {(bytes.fromhex(key), view) for view in views}
            elif "sealed" in entry:
                acknowledged |= added
        self._count("rows lost", len((before.keys() | acknowledged) - now.keys()), "gone")
        self._count("rows lost", len(before.keys() & added), "computed again")
        wanted = rows_of(self._world.cache("some" if self._image_set == "broken" else self._image_set)).keys()
        self._count("silently wrong rows", len(added - wanted), "not asked for")

    def _check_end(self) -> None:
        """The one file is there, alone, and equal to that of an undisturbed build."""
        self._count("leftovers", len({path.name for path in self._out.parent.iterdir()} - {self._out.name}))
        reference = self._world.cache(self._plan.scenario.later_images)
        missing = rows_of(reference).keys() - (rows_of(self._out).keys() if self._out.name in self._digests else set())
        self._count("silently wrong rows", len(missing), "missing in the end")
        if not missing and self._plan.scenario.name != "images removed":
            other = CacheReader(self._out).content_id != CacheReader(reference).content_id
            self._count("silently wrong rows", other, "content_id")

    def _last_words(self) -> str:
        return self._log.read_text("utf-8", "replace")[-600:] if self._log.exists() else ""


def draw_plans(quota: Counter[str], rng: random.Random, first_number: int = 0) -> list[Plan]:
    """Trials that use up a quota of kills by step, some of them with two or three kills in a row."""
    left, plans = Counter(quota), list[Plan]()
    while left := +left:
        first = rng.choice(sorted(left))
        scenario = rng.choice([scenario for scenario in SCENARIOS if _is_possible(first, scenario)])
        n_kills = rng.choices((1, 2, 3), (6, 3, 1))[0]
        others = [s for s in STEPS if left[s] and s not in (first, ANY_MOMENT) and _is_possible(s, scenario)]
        if first == ANY_MOMENT:
            steps = [first] * min(n_kills, left[first])
        else:
            steps = sorted([first, *rng.sample(others, min(n_kills - 1, len(others)))], key=STEPS.index)
            if set(NEW_FILE_STEPS) <= set(steps):  # the one file is new only once
                steps.remove(NEW_FILE_STEPS[1])
        left.subtract(steps)
        actions = _actions(scenario, [_draw_kill(step, len(steps) > 1, rng) for step in steps], rng)
        plans.append(Plan(first_number + len(plans), scenario, actions, rng.random() < SHARE_WITH_WORKERS))
    return plans


def _is_possible(step: str, scenario: Scenario) -> bool:
    return step not in (NEW_FILE_STEPS if scenario.base else REPLACE_STEPS)


def _draw_kill(step: str, in_chain: bool, rng: random.Random) -> Kill:
    """Passages that every scenario has: 4 segments, 2 where earlier kills of the chain have sealed some; 20 writes."""
    segment = 1 if in_chain else rng.randint(1, 3)
    if step == "segment half written":
        return Kill(step, 10 * (segment - 1) + rng.randint(1, 10))
    if step == "merge half written":
        return Kill(step, rng.randint(1, 20))
    return Kill(step, segment if step.startswith("segment") else 1, rng.random())


def _actions(scenario: Scenario, kills: list[Kill], rng: random.Random) -> tuple[Kill | str, ...]:
    """Kills, with the change of images somewhere behind the first, and the last run."""
    if scenario.images == scenario.later_images:
        return (*kills, "run")
    if scenario.images != "broken":
        at = rng.randint(1, len(kills))
        return (*kills[:at], "change", *kills[at:], "run")
    # With a broken image a build ends before its merge, with exit code 1.
    early = [kill for kill in kills if kill.step not in LATE_STEPS]
    late = kills[len(early) :]
    full_run = ["run"] if not early or rng.random() < 0.5 else []
    return (*early, *full_run, "change", *late, "run")


def campaign(world: World, kills: int, seed: int, steps: list[str]) -> Report:
    """Kill builds so many times, spread over the steps."""
    rng, report = random.Random(seed), Report()
    orphans = Orphans(report)
    shares = steps + [ANY_MOMENT] * (ANY_MOMENT_SHARES - 1) * (ANY_MOMENT in steps)
    quota = Counter(shares[number % len(shares)] for number in range(kills))
    n_trials = 0
    plans = draw_plans(quota, rng)
    # Random moments that came too late are drawn again, but not for ever.
    while plans and n_trials < 4 * kills:
        for plan in plans:
            Trial(world, plan, report, orphans).run()
            orphans.check(wait=False)
        n_trials += len(plans)
        plans = draw_plans(Counter({ANY_MOMENT: quota[ANY_MOMENT] - report.kills[ANY_MOMENT]}), rng, n_trials)
    missing = quota[ANY_MOMENT] - report.kills[ANY_MOMENT]
    report.count(ANY_MOMENT, "not reached", missing, "every build was over before")
    orphans.check(wait=True)
    return report


def parse(words: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500, help="in total, spread over the steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step", action="append", choices=STEPS, metavar="STEP", help="only this one; repeatable")
    parser.add_argument("--folder", type=Path, help="new folder to work in; failed trials stay [a temporary one]")
    parser.add_argument("--json", type=Path, help="write the counts there, too")
    arguments = parser.parse_args(words)
    arguments.step = arguments.step or list(STEPS)
    if arguments.kills < len(arguments.step):
        parser.error(f"--kills must be at least one for each of {len(arguments.step)} steps, got {arguments.kills}")
    if arguments.folder is not None and arguments.folder.exists():
        parser.error(f"{arguments.folder} exists: choose another --folder, or delete it")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Run the campaign, print its table; 1 if anything was damaged or not reached."""
    arguments = parse(words)
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        world = World(arguments.folder or Path(temporary))
        report = campaign(world, arguments.kills, arguments.seed, arguments.step)
    wall_s = time.perf_counter() - started
    total = report.line(arguments.step)
    print(report.to_table(arguments.step))
    scenarios = ", ".join(f"{name} {n}" for name, n in sorted(report.scenarios.items()) if n)
    print(f"\n{total['kills']} kills in {wall_s:.0f} s, seed {arguments.seed}. Trials: {scenarios}.")
    for detail in report.details[:20]:
        print(detail, file=sys.stderr)
    if arguments.json is not None:
        counts = {step: report.line([step]) for step in arguments.step}
        result = {"seed": arguments.seed, "wall_s": wall_s, "total": total, "steps": counts}
        arguments.json.write_text(json.dumps({**result, "scenarios": report.scenarios, "details": report.details}))
    return int(any(total[name] for name in DAMAGES))


if __name__ == "__main__":
    sys.exit(main())
