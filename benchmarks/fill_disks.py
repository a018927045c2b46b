"""Let the disk be full at every write of `softlabel` commands, then free it and do what the error line says.

Counts what was lost, left over or not finished by that. Never writes to a disk of more than 64 MB: it mounts a tmpfs
that goes with it, takes the one given by --disk, or, where neither can be had, lets the kernel refuse bytes beyond a
size in each file (--file-limit). The commands are forked from this process, which has imported everything.
Run: OMP_NUM_THREADS=1 python benchmarks/fill_disks.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import pipeline.build
import pipeline.evaluate
import pipeline.export
import pipeline.train  # noqa: F401 (forked commands find them imported)
from cache import CacheReader, SegmentedWriter, durable
from cache.errors import CacheDiskFull, CacheError
from cache.workspace import LOCK_NAME, PLAN_NAME
from data.samples import FOLDER_TASK, scan_folder
from pipeline.cli import run
from pipeline.demo.lesions import write_lesions
from pipeline.runs import METRIC_COLUMNS
from pipeline.teachers.fit import SmallSiglip, new_siglip
from pipeline.teachers.prompts import default_prompts

LARGEST_DISK_BYTES = 64_000_000
TMPFS_BYTES = 40 << 20
NAMESPACES = (["unshare", "-m"], ["unshare", "-rm"])
BALLAST_NAME = "ballast"
UNSEALED = (durable.TEMP_SUFFIX, LOCK_NAME)
SEGMENT_ROWS = 16
FROM_THE_START = 0
OWN_PROCESS = "any, in a process of its own"
NO_WRITE = "none: it writes nothing"
NO_FILE = "none of its files"
HANG_S = 120.0
TIMES = ("images_per_s", "wall_s")
# The named bytes may be those of a whole page; a table with times in it has not always the same length.
MORE_BYTES, FEWER_BYTES = 4096, 64
RIGHT, WRONG = ("exit 1 with bytes", "finished after freeing"), ("sealed work lost", "left over")
COUNTS = (RIGHT[0], *WRONG, RIGHT[1])


class SmallDisk:
    """A small file system, in which a file without meaning takes all room but so many bytes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.block_bytes = os.statvfs(root).f_frsize

    @property
    def free_bytes(self) -> int:
        """What may still be written."""
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    def room_for(self, n_bytes: int) -> int:
        """What a file takes."""
        return -(-n_bytes // self.block_bytes) * self.block_bytes

    def room_needed(self, used_before: int, n_bytes: int) -> int:
        """What must be free at the start of a command for a file that it writes when it has used so much."""
        return used_before + self.room_for(n_bytes)

    def squeeze(self, free_bytes: int) -> None:
        """Leave so much room; called in the process of the command."""
        excess = 0
        with open(self.root / BALLAST_NAME, "ab", buffering=0) as ballast:
            with suppress(OSError):  # a file system may keep the last blocks for itself
                while (excess := self.free_bytes - free_bytes) > 0:
                    ballast.write(bytes(excess))
            ballast.truncate(max(0, ballast.tell() + min(0, excess)))

    def still_full(self, squeeze: Squeeze) -> Squeeze | None:
        """What a second command needs to meet the disk as this squeeze left it: the ballast stands."""
        return None

    def release(self) -> None:
        """Give all room back."""
        (self.root / BALLAST_NAME).unlink(missing_ok=True)

    def wipe(self) -> None:
        """Remove everything."""
        for path in self.root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def __str__(self) -> str:
        status = os.statvfs(self.root)
        return f"a file system of {status.f_blocks * status.f_frsize:,} bytes"


class FileLimit(SmallDisk):
    """No small file system, but a kernel that refuses, in one process, each file's bytes beyond a number."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.block_bytes = 1

    def room_needed(self, used_before: int, n_bytes: int) -> int:
        """The limit holds for each file."""
        return n_bytes

    def squeeze(self, free_bytes: int) -> None:
        """From now on, in this process."""
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def still_full(self, squeeze: Squeeze) -> Squeeze | None:
        """The limit went with the process."""
        return Squeeze(FROM_THE_START, squeeze.free_bytes)

    def __str__(self) -> str:
        return "a limit on each file's bytes (RLIMIT_FSIZE)"


@dataclass(frozen=True)
class Squeeze:
    """When the disk becomes full, and how much room it has left then."""

    write: int
    """The how-manieth write of the command; 0 is its start."""
    free_bytes: int


@dataclass(frozen=True)
class Write:
    """One file that an undisturbed command wrote."""

    number: int
    name: str
    passage: int
    """The how-manieth file of this name, or the how-manieth segment."""
    used_bytes: int
    """What the command had used of the disk before."""
    n_bytes: int
    """At least so many."""

    def label(self, scenario: Scenario) -> str:
        """For people."""
        if self.name == scenario.out.name and self.name.endswith(".h5"):
            return "merge"
        if self.name.endswith(".h5"):
            return "first segment" if self.passage == 1 else "later segment"
        if self.name == "last.pt":
            return "first last.pt" if self.passage == 1 and not scenario.start else "later last.pt"
        return self.name


@dataclass(frozen=True)
class Attempt:
    """One start of a command and what came of it."""

    exit_code: int | None
    output: str
    entries: list[dict[str, Any]]
    """The probe's journal."""

    @property
    def failed_write(self) -> int | None:
        """Number of the write that found the disk full."""
        return next((int(entry["failed"]) for entry in self.entries if "failed" in entry), None)

    @property
    def published(self) -> dict[str, str]:
        """Path in the disk -> sha256 of what got its final name last."""
        return {entry["published"]: entry["digest"] for entry in self.entries if "published" in entry}


class Probe:
    """Lives in the command's process: tells which file is written when, and fills the disk before one of them."""

    def __init__(self, disk: SmallDisk, journal_fd: int, squeeze: Squeeze | None) -> None:
        self._disk, self._journal_fd, self._squeeze = disk, journal_fd, squeeze
        self._number, self._name, self._free_bytes = 0, "", disk.free_bytes

    def install(self) -> None:
        """Wrap the functions that write, in this process."""
        if self._squeeze is not None and self._squeeze.write == FROM_THE_START:
            self._disk.squeeze(self._squeeze.free_bytes)
        durable.disk_errors = self._watched(durable.disk_errors)
        for publish in ("publish_new", "publish_replace"):
            setattr(durable, publish, self._noted(getattr(durable, publish)))

    def _note(self, **entry: Any) -> None:
        os.write(self._journal_fd, b"\x1e" + json.dumps(entry).encode() + b"\n")

    def _watched(self, disk_errors: Callable[[Path, int], AbstractContextManager[None]]) -> Any:
        @contextmanager
        def watched(path: Path, needed_bytes: int) -> Iterator[None]:
            self._starts(path)
            try:
                with disk_errors(path, needed_bytes):
                    yield
            except CacheDiskFull:
                self._note(failed=self._number)
                raise

        return watched

    def _starts(self, path: Path) -> None:
        name = re.sub(r"\.[0-9a-f]{16}\.tmp$", "", path.name)
        if name == self._name:
            return
        self._number, self._name = self._number + 1, name
        self._note(write=self._number, name=name, used=self._free_bytes - self._disk.free_bytes)
        if self._squeeze is not None and self._squeeze.write == self._number:
            self._disk.squeeze(self._squeeze.free_bytes)

    def _noted(self, publish: Callable[[Path, Path], Any]) -> Callable[[Path, Path], Any]:
        def noted(temp: Path, final: Path) -> Any:
            content = temp.read_bytes()
            is_new = publish(temp, final)
            if is_new is not False:
                digest, path = hashlib.sha256(content).hexdigest(), str(final.relative_to(self._disk.root))
                self._note(published=path, digest=digest, n_bytes=len(content), by=self._number)
            return is_new

        return noted


def attempt(disk: SmallDisk, words: list[str], squeeze: Squeeze | None = None) -> Attempt:
    """Run one command line in a forked process, to its end."""
    read_fd, write_fd = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=_command, args=(disk, words, squeeze, write_fd))
    process.start()
    os.close(write_fd)
    watchdog = threading.Timer(HANG_S, process.kill)
    watchdog.start()
    with open(read_fd, "rb") as pipe:
        told = pipe.read()
    process.join()
    watchdog.cancel()
    entries = [json.loads(line) for line in re.findall(rb"\x1e([^\n]*)\n", told)]
    return Attempt(process.exitcode, re.sub(rb"\x1e[^\n]*\n", b"", told).decode("utf-8", "replace"), entries)


def _command(disk: SmallDisk, words: list[str], squeeze: Squeeze | None, write_fd: int) -> None:
    # A pipe for everything it says: a limit on files would hold for a log file, too.
    for stream_fd in (1, 2):
        os.dup2(write_fd, stream_fd)
    sys.stdout, sys.stderr = (os.fdopen(stream_fd, "w", buffering=1, closefd=False) for stream_fd in (1, 2))
    sys.argv = ["softlabel", *words]
    Probe(disk, write_fd, squeeze).install()
    sys.exit(run(words))


def attempt_in_own_process(disk: SmallDisk, words: list[str], squeeze: Squeeze) -> Attempt:
    """The same in a new interpreter without a probe, which also shows how it ends: as a user runs it."""
    assert squeeze.write == FROM_THE_START
    done = subprocess.run(
        [sys.executable, "-m", "softlabel", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        timeout=HANG_S, preexec_fn=lambda: disk.squeeze(squeeze.free_bytes),
    )  # fmt: skip
    return Attempt(done.returncode, done.stdout.decode("utf-8", "replace"), [])


@dataclass(frozen=True)
class Scenario:
    """One command, the files that stand on the disk before it, and what counts as the same result."""

    name: str
    out: Path
    words: list[str]
    start: dict[str, Path]
    """Name on the disk -> what is copied there."""
    result: Callable[[Path], object]


class World:
    """What all trials share, each part made when it is first asked for: images, a teacher, undisturbed results."""

    def __init__(self, folder: Path, disk: SmallDisk) -> None:
        self.folder, self.disk = folder, disk
        defaults: dict[str, Any] = SegmentedWriter.__init__.__kwdefaults__ or {}
        assert "segment_rows" in defaults
        defaults["segment_rows"] = SEGMENT_ROWS

    @cached_property
    def images(self) -> Path:
        """A small image set."""
        write_lesions(self.folder / "images", {"train": 4, "val": 2, "test": 1}, size_px=32)
        return self.folder / "images"

    @cached_property
    def teacher(self) -> Path:
        """A tiny SigLIP model."""
        prompts = default_prompts(scan_folder(self.images).classes[FOLDER_TASK])
        texts = [text for class_texts in prompts.values() for text in class_texts]
        folder = self.folder / "teacher"
        model = new_siglip(SmallSiglip(size_px=32, patch_px=8, width=64, layers=2, heads=2), texts, folder)
        with torch.no_grad():  # a fresh model's answers are nearly constant, and wrong rows must not look right
            model.vision_model.head.probe.normal_(generator=torch.Generator().manual_seed(0))
        model.save_pretrained(folder)
        return folder

    @cached_property
    def one_view(self) -> Path:
        """A cache of the clean views."""
        return self._made("one-view.h5", self._build_words(self.folder / "one-view.h5", views=1))

    @cached_property
    def cache(self) -> Path:
        """The cache of all views."""
        return self._made("all.h5", self._build_words(self.folder / "all.h5"))

    @cached_property
    def finished_run(self) -> Path:
        """A run of all epochs."""
        return self._made("finished", self._train_words(self.folder / "finished"))

    @cached_property
    def interrupted_run(self) -> Path:
        """A run that met a full disk in its last epoch."""
        scenario = self.scenario("train")
        lasts = [write for write in undisturbed(self, scenario)[0] if write.name == "last.pt"]
        self.lay_out(scenario)
        attempt(self.disk, scenario.words, Squeeze(lasts[-1].number, 0))
        self.disk.release()
        return Path(shutil.copytree(scenario.out, self.folder / "interrupted"))

    def scenario(self, name: str) -> Scenario:
        """One of SCENARIOS."""
        root = self.disk.root
        cache, run_folder = root / "t.h5", root / "run"
        if name == "build":
            return Scenario(name, cache, self._build_words(cache), {}, content_of_cache)
        if name == "build, extending":
            return Scenario(name, cache, self._build_words(cache), {"t.h5": self.one_view}, content_of_cache)
        if name == "merge":
            out, start = root / "m.h5", {"a.h5": self.one_view, "b.h5": self.cache}
            words = ["cache", "merge", *(str(root / source) for source in start), "-o", str(out)]
            return Scenario(name, out, words, start, content_of_cache)
        if name == "train":
            return Scenario(name, run_folder, self._train_words(run_folder), {}, content_of_run)
        if name == "train, resumed":
            words = [*self._train_words(run_folder), "--resume"]
            return Scenario(name, run_folder, words, {"run": self.interrupted_run}, content_of_run)
        if name == "export":
            out = root / "student.pt"
            return Scenario(name, out, ["export", str(self.finished_run), "-o", str(out)], {}, Path.read_bytes)
        out = root / "scores.json"
        words = ["evaluate", str(self.finished_run), str(self.images), "--json", str(out), "--workers", "0"]
        return Scenario(name, out, words, {}, Path.read_bytes)

    def lay_out(self, scenario: Scenario) -> None:
        """The disk as it is before the command."""
        self.disk.release()
        self.disk.wipe()
        for name, source in scenario.start.items():
            copy = shutil.copytree if source.is_dir() else shutil.copyfile
            copy(source, self.disk.root / name)

    def _build_words(self, out: Path, views: int = 6) -> list[str]:
        teacher = ["--teacher", str(self.teacher), "--views", str(views), "--batch-size", "8", "--precision", "fp32"]
        return ["cache", "build", str(self.images), "-o", str(out), *teacher, "--device", "cpu"]

    def _train_words(self, out: Path) -> list[str]:
        student = ["--student", "shufflenet_v2_x0_5", "--student-size", "32", "--epochs", "2", "--batch-size", "10"]
        return ["train", str(self.images), str(self.cache), "-o", str(out), *student, "--device", "cpu"]

    def _made(self, name: str, words: list[str]) -> Path:
        done = attempt(FileLimit(self.folder), words)
        if done.exit_code != 0:
            raise RuntimeError(f"undisturbed, softlabel {shlex.join(words)} failed: {done.output}")
        return self.folder / name


SCENARIOS = ("build", "build, extending", "merge", "train", "train, resumed", "export", "evaluate --json")


def content_of_cache(path: Path) -> str:
    """Every bit of every row."""
    with CacheReader(path) as reader:
        reader.verify()
        return reader.content_id


def content_of_run(path: Path) -> tuple[list[str], str]:
    """The rows of metrics.csv without times, and a hash of all weights."""
    columns = [number for number, name in enumerate(METRIC_COLUMNS) if name not in TIMES]
    lines = [line.split(",") for line in (path / "metrics.csv").read_text("utf-8").splitlines()]
    digest = hashlib.sha256()
    for name, part in (("last.pt", "model"), ("last.pt", "ema"), ("best.pt", "model")):
        weights = torch.load(path / name, weights_only=True)[part]
        for tensor in weights.values():
            digest.update(tensor.numpy().tobytes())
    return [",".join(line[number] for number in columns) for line in lines], digest.hexdigest()


def undisturbed(world: World, scenario: Scenario) -> tuple[list[Write], object, set[str]]:
    """What the command writes when there is room: its writes, its result, the files that stand in the end."""
    world.lay_out(scenario)
    done = attempt(world.disk, scenario.words)
    if done.exit_code != 0:
        raise RuntimeError(f"undisturbed, softlabel {shlex.join(scenario.words)} failed: {done.output}")
    n_bytes = {entry["by"]: entry["n_bytes"] for entry in done.entries if "published" in entry}
    writes, passages = list[Write](), Counter[str]()
    for entry in done.entries:
        if "write" in entry:
            kind = "segment" if entry["name"].endswith(".h5") and entry["name"] != scenario.out.name else entry["name"]
            passages[kind] += 1
            # The lock file is not published; it has some bytes.
            least = n_bytes.get(entry["write"], 1) - FEWER_BYTES * entry["name"].endswith(".csv")
            writes.append(Write(entry["write"], entry["name"], passages[kind], entry["used"], least))
    return writes, scenario.result(scenario.out), set(files(world.disk.root))


def files(root: Path) -> dict[str, str]:
    """Path -> sha256, of every file but the ballast."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != BALLAST_NAME]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def squeezes(disk: SmallDisk, writes: list[Write], trials: int, rng: random.Random) -> list[tuple[Write, Squeeze]]:
    """So many ways to meet a full disk, spread over the writes: from the start where that reaches them, else later."""
    choices: list[list[tuple[Write, Squeeze]]] = []
    most = 0
    for write in writes:
        needed = disk.room_needed(write.used_bytes, write.n_bytes)
        start, low, high = FROM_THE_START, most, needed
        if needed <= most:
            start, low, high = write.number, 0, disk.room_for(write.n_bytes)
        steps = (high - low) // disk.block_bytes
        # Just too little, almost nothing, and anything between.
        between = rng.sample(range(1, steps - 1), min(steps - 2, trials)) if steps > 2 else []
        rooms = [low + step * disk.block_bytes for step in dict.fromkeys([steps - 1, 0, *between])]
        choices.append([(write, Squeeze(start, room)) for room in rooms])
        most = max(most, needed)
    rounds = [choice[turn] for turn in range(trials) for choice in _shuffled(choices, rng) if turn < len(choice)]
    return sorted(rounds[:trials], key=lambda pair: pair[0].number)


def _shuffled(choices: list[Any], rng: random.Random) -> list[Any]:
    return rng.sample(choices, len(choices))


class Report:
    """Trials and what came of them, by command and write."""

    def __init__(self) -> None:
        self.trials: Counter[tuple[str, str]] = Counter()
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.free_bytes: dict[tuple[str, str], set[int]] = {}
        self.details: list[str] = []

    def add(self, command: str, write: str, free_bytes: int, found: dict[str, str]) -> None:
        """Count one trial; `found` says what was wrong with each column, "" for nothing."""
        self.trials[command, write] += 1
        self.free_bytes.setdefault((command, write), set()).add(free_bytes)
        for name in COUNTS:
            is_counted = bool(found[name]) if name in WRONG else not found[name]
            self.counts[command, write, name] += is_counted
        self.details += [f"{command}, {write}: {name}: {reason}" for name, reason in found.items() if reason]

    def line(self, rows: list[tuple[str, str]]) -> dict[str, int]:
        """Column -> number, summed over rows."""
        counts = {name: sum(self.counts[(*row, name)] for row in rows) for name in COUNTS}
        return {"trials": sum(self.trials[row] for row in rows), **counts}

    def n_rooms(self, command: str) -> int:
        """How many different numbers of free bytes a command met."""
        return len(set().union(*(rooms for row, rooms in self.free_bytes.items() if row[0] == command)))

    def to_table(self) -> str:
        """Markdown."""
        rows = [["command", "write that failed", *self.line([])], ["---"] * (3 + len(COUNTS))]
        rows += [[*row, *map(str, self.line([row]).values())] for row in self.trials]
        rows += [["**all**", "", *map(str, self.line(list(self.trials)).values())]]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class Trial:
    """One command that meets a full disk, again when it is repeated, and then has room."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self._world, self._disk, self._scenario = world, world.disk, scenario
        self.writes, self._result, self._last_files = undisturbed(world, scenario)

    def run(self, report: Report, write: Write, squeeze: Squeeze, *, own_process: bool = False) -> None:
        """Count it under the write that really failed first."""
        self._world.lay_out(self._scenario)
        expected, words = files(self._disk.root), self._scenario.words
        done = (attempt_in_own_process if own_process else attempt)(self._disk, words, squeeze)
        failed = next((one for one in self.writes if one.number == done.failed_write), None)
        found = {RIGHT[0]: self._ill_told(done, failed)} | self._damage(done, expected)
        if (told := told_command(done.output, words)) is None:
            found[RIGHT[1]] = f"no command is named: {done.output[-600:].strip()}"
        else:
            done = attempt(self._disk, told, self._disk.still_full(squeeze))
            again = {RIGHT[0]: self._ill_told(done, None)} | self._damage(done, expected)
            found |= {name: f"when repeated: {reason}" for name, reason in again.items() if reason and not found[name]}
            self._disk.release()
            found[RIGHT[1]] = self._unfinished(done)
        where = f" [{squeeze.free_bytes:,} bytes free at write {squeeze.write}]"
        label = OWN_PROCESS if own_process else failed.label(self._scenario) if failed else NO_FILE
        found = {name: text and text + where for name, text in found.items()}
        report.add(self._scenario.name, label, squeeze.free_bytes, found)

    def _damage(self, done: Attempt, expected: dict[str, str]) -> dict[str, str]:
        """What is gone and what is too much after an attempt, whose sealed files join those that are expected."""
        if done.entries:
            expected |= done.published
        else:  # without a probe: all that has a final name now, and caches as they were
            final = {name: digest for name, digest in files(self._disk.root).items() if not name.endswith(UNSEALED)}
            caches = {name: digest for name, digest in expected.items() if name.endswith(".h5")}
            expected |= final | caches
        return {"sealed work lost": self._lost(expected), "left over": self._left_over(expected)}

    def _ill_told(self, done: Attempt, failed: Write | None) -> str:
        """What is wrong with exit code and error line."""
        errors = [line for line in done.output.splitlines() if line.startswith("Error: ")]
        named = re.search(r"no room for ([\d,]+) bytes in ", errors[0]) if len(errors) == 1 else None
        if done.exit_code != 1 or "Traceback" in done.output or named is None:
            return f"exit {done.exit_code}: {done.output[-600:].strip()}"
        n_bytes = int(named[1].replace(",", ""))
        if failed is not None and not failed.n_bytes - FEWER_BYTES <= n_bytes <= failed.n_bytes + MORE_BYTES:
            return f"{failed.name} has {failed.n_bytes:,} bytes: {errors[0]}"
        return ""

    def _lost(self, expected: dict[str, str]) -> str:
        """Files that were sealed, and are gone, altered or of no use."""
        now = files(self._disk.root)
        has_segments = any(name.endswith(".h5") and ".parts/" in name for name in now)
        for name, digest in expected.items():
            if Path(name).name == PLAN_NAME and not has_segments:
                continue  # a folder without anything to resume from goes
            path = self._disk.root / name
            if now.get(name) != digest:
                return f"{name} is {'altered' if name in now else 'gone'}"
            try:
                if path.suffix == ".h5":
                    CacheReader(path).verify()
                elif path.suffix == ".pt":
                    torch.load(path, weights_only=True)
            except (CacheError, RuntimeError, OSError, EOFError) as error:
                return f"{name} does not load: {error}"
        return ""

    def _left_over(self, expected: dict[str, str]) -> str:
        """Files that nobody needs."""
        now = files(self._disk.root)
        extra = now.keys() - expected.keys()
        if any(name.endswith(".h5") and ".parts/" in name for name in now):
            extra -= {f"{self._scenario.out.name}.parts/{LOCK_NAME}"}
        else:
            extra |= {name for name in now if Path(name).name == PLAN_NAME}
        return ", ".join(sorted(extra))

    def _unfinished(self, done: Attempt) -> str:
        """What is wrong after the repetition."""
        words = told_command(done.output, self._scenario.words)
        if words is None:
            return f"no command is named: {done.output[-600:].strip()}"
        is_resume = (self._disk.root / "run" / "last.pt").exists()
        if self._scenario.name.startswith("train") and ("--resume" in words) != is_resume:
            return f"the named command is wrong: {shlex.join(words)}"
        again = attempt(self._disk, words)
        if again.exit_code != 0:
            return f"exit {again.exit_code}: {again.output[-600:].strip()}"
        if (now := set(files(self._disk.root))) != self._last_files:
            return f"other files than undisturbed: {sorted(now ^ self._last_files)}"
        if self._scenario.result(self._scenario.out) != self._result:
            return "another result than undisturbed"
        return ""


def told_command(output: str, words: list[str]) -> list[str] | None:
    """The arguments of the command line that an error message says to run; None where it says nothing."""
    if found := re.search(r"^  softlabel (.+)$", output, re.MULTILINE):
        return shlex.split(found[1])
    return words if "run the same command again" in output else None


def campaign(world: World, commands: list[str], trials: int, own_processes: int, seed: int) -> Report:
    """Let each command meet so many full disks."""
    rng, report = random.Random(seed), Report()
    for name in commands:
        trial = Trial(world, world.scenario(name))
        for write, squeeze in squeezes(world.disk, trial.writes, trials, rng):
            trial.run(report, write, squeeze)
        most = max(world.disk.room_needed(write.used_bytes, write.n_bytes) for write in trial.writes)
        for number in range(own_processes):
            room = most * (number + 1) // (own_processes + 1) // world.disk.block_bytes * world.disk.block_bytes
            trial.run(report, trial.writes[-1], Squeeze(FROM_THE_START, room), own_process=True)
    check_readers(world, report)
    return report


def check_readers(world: World, report: Report) -> None:
    """Commands that only read say the same on a full disk."""
    cache = world.disk.root / "t.h5"
    world.disk.wipe()
    shutil.copyfile(world.cache, cache)
    for words in (["cache", "info", str(cache)], ["cache", "verify", str(cache)]):
        before, full = attempt(world.disk, words), attempt(world.disk, words, Squeeze(FROM_THE_START, 0))
        world.disk.release()
        is_same = (before.exit_code, before.output) == (full.exit_code, full.output) == (0, before.output)
        found = dict.fromkeys(COUNTS, "") | {RIGHT[1]: "" if is_same else full.output}
        report.add(" ".join(words[:2]), NO_WRITE, 0, found)


def on_a_small_disk(words: list[str]) -> int | None:
    """Run this script on a tmpfs of its own, which goes with its process; None where that cannot be had."""
    mount = f'mount -t tmpfs -o size={TMPFS_BYTES} tmpfs "$0" && exec "$@"'
    with tempfile.TemporaryDirectory() as folder:
        for namespace in NAMESPACES:
            start = [*namespace, "sh", "-c", mount, folder]
            try:
                can_mount = subprocess.run([*start, "true"], capture_output=True, check=False).returncode == 0
            except OSError:
                continue
            if can_mount:
                script = [sys.executable, os.path.abspath(__file__), *words, "--disk", folder]
                return subprocess.run([*start, *script], check=False).returncode
    return None


def parse(words: list[str]) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24, help="for each command, spread over its writes")
    parser.add_argument("--own-processes", type=int, default=1, help="more trials, not forked but started anew")
    parser.add_argument("--command", action="append", choices=SCENARIOS, help="only this one; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", type=Path, help="empty folder on a small file system [a tmpfs]")
    parser.add_argument("--file-limit", action="store_true", help="no small file system but a limit on each file")
    parser.add_argument("--json", type=Path, help="write the counts there, too")
    arguments = parser.parse_args(words)
    arguments.command = arguments.command or list(SCENARIOS)
    if arguments.trials < 1 or arguments.own_processes < 0:
        parser.error(f"--trials must be 1 or more, got {arguments.trials}; --own-processes 0 or more")
    if arguments.disk is not None:
        arguments.disk = arguments.disk.absolute()
        if not arguments.disk.is_dir() or any(arguments.disk.iterdir()):
            parser.error(f"--disk {arguments.disk} is not an empty folder")
        status = os.statvfs(arguments.disk)
        if (n_bytes := status.f_blocks * status.f_frsize) > LARGEST_DISK_BYTES:
            parser.error(f"--disk {arguments.disk} is on {n_bytes:,} bytes, expected {LARGEST_DISK_BYTES:,} at most")
    return arguments


def main(words: list[str]) -> int:
    """Run the campaign, print its table; 1 if anything was off."""
    arguments = parse(words)
    if arguments.disk is None and not arguments.file_limit:
        if (exit_code := on_a_small_disk(words)) is not None:
            return exit_code
        print("no small file system can be mounted here: --file-limit instead", file=sys.stderr)
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "disk").mkdir()
        disk = SmallDisk(arguments.disk) if arguments.disk else FileLimit(Path(temporary, "disk"))
        world = World(Path(temporary), disk)
        try:
            report = campaign(world, arguments.command, arguments.trials, arguments.own_processes, arguments.seed)
        finally:
            disk.wipe()
    wall_s = time.perf_counter() - started
    print(report.to_table())
    rooms = ", ".join(f"{name} {report.n_rooms(name)}" for name in arguments.command)
    print(f"\n{sum(report.trials.values())} trials in {wall_s:.0f} s, seed {arguments.seed}, on {disk}.")
    print(f"Numbers of free bytes that were tried: {rooms}.")
    for detail in report.details[:20]:
        print(detail, file=sys.stderr)
    if arguments.json is not None:
        rows = [
            {"command": row[0], "write": row[1], **report.line([row]), "free_bytes": sorted(report.free_bytes[row])}
            for row in report.trials
        ]
        result = {"seed": arguments.seed, "wall_s": wall_s, "disk": str(disk), "rows": rows, "details": report.details}
        arguments.json.write_text(json.dumps(result))
    return int(bool(report.details))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
