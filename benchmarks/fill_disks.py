"""Let the disk be full at every write of `softlabel` commands, then free it and do what the error line says.

Counts what was lost, left over or not finished by that. Never writes to a disk of more than 64 MB: it mounts a tmpfs
that goes with it, takes the one given by --disk, or, where neither can be had, lets the kernel refuse bytes beyond a
size in each file (--file-limit). Run: OMP_NUM_THREADS=1 python benchmarks/fill_disks.py
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

import pipeline.build
import pipeline.evaluate
import pipeline.export
import pipeline.train  # noqa: F401 (forked commands find them imported)
from cache import CacheReader, durable
from cache.errors import CacheError
from cache.workspace import LOCK_NAME, PLAN_NAME
from reliability.attempts import Attempt, attempt, attempt_in_own_process
from reliability.commands import FEWER_BYTES, MORE_BYTES, SCENARIOS, Scenario, World, Write, undisturbed
from reliability.disks import FROM_THE_START, FileLimit, SmallDisk, Squeeze, files, on_tmpfs
from reliability.report import Report, Row

LARGEST_DISK_BYTES = 64_000_000
UNSEALED = (durable.TEMP_SUFFIX, LOCK_NAME)
OWN_PROCESS = "any, in a process of its own"
NO_WRITE = "none: it writes nothing"
NO_FILE = "none of its files"
RIGHT, WRONG = ("exit 1 with bytes", "finished after freeing"), ("sealed work lost", "left over")
COUNTS = (RIGHT[0], *WRONG, RIGHT[1])


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
    n = len(choices)
    rounds = [choice[turn] for turn in range(trials) for choice in rng.sample(choices, n) if turn < len(choice)]
    return sorted(rounds[:trials], key=lambda pair: pair[0].number)


class DiskReport(Report):
    """Trials and what came of them, by command and write; and the numbers of free bytes that were tried."""

    def __init__(self) -> None:
        super().__init__("trials", *COUNTS)
        self.free_bytes: dict[Row, set[int]] = {}

    def add_trial(self, row: Row, free_bytes: int, found: dict[str, str]) -> None:
        """Count one; `found` says what was wrong with each column, "" for nothing."""
        self.add(row, "trials")
        self.free_bytes.setdefault(row, set()).add(free_bytes)
        for name in COUNTS:
            self.add(row, name, bool(found[name]) == (name in WRONG))
        self.details += [f"{', '.join(row)}: {name}: {reason}" for name, reason in found.items() if reason]

    def n_rooms(self, command: str) -> int:
        """How many different numbers of free bytes a command met."""
        return len(set().union(*(rooms for row, rooms in self.free_bytes.items() if row[0] == command)))


class Trial:
    """One command that meets a full disk, again when it is repeated, and then has room."""

    def __init__(self, world: World, scenario: Scenario) -> None:
        self._world, self._disk, self._scenario = world, world.disk, scenario
        self.writes, self._result, self._last_files = undisturbed(world, scenario)

    def run(self, report: DiskReport, write: Write, squeeze: Squeeze, *, own_process: bool = False) -> None:
        """Count it under the write that really failed first."""
        self._world.lay_out(self._scenario)
        expected, words = files(self._disk.root), self._scenario.words
        done = (attempt_in_own_process if own_process else attempt)(self._disk, words, squeeze)
        failed = next((one for one in self.writes if one.number == done.failed_write), None)
        found = {RIGHT[0]: self._ill_told(done, failed)} | self._damage(done, expected)
        if (told := told_command(done.output, words)) is not None:
            done = attempt(self._disk, told, self._disk.still_full(squeeze))
            again = {RIGHT[0]: self._ill_told(done, None)} | self._damage(done, expected)
            found |= {name: f"when repeated: {reason}" for name, reason in again.items() if reason and not found[name]}
            self._disk.release()
        found[RIGHT[1]] = self._unfinished(done)
        where = f" [{squeeze.free_bytes:,} bytes free at write {squeeze.write}]"
        label = OWN_PROCESS if own_process else failed.label(self._scenario) if failed else NO_FILE
        found = {name: text and text + where for name, text in found.items()}
        report.add_trial((self._scenario.name, label), squeeze.free_bytes, found)

    def _damage(self, done: Attempt, expected: dict[str, str]) -> dict[str, str]:
        """What is gone and what is too much after an attempt, whose sealed files join those that are expected."""
        now = files(self._disk.root)
        if done.entries:
            expected |= done.published
        else:  # without a probe: all that has a final name now, and caches as they were
            final = {name: digest for name, digest in now.items() if not name.endswith(UNSEALED)}
            caches = {name: digest for name, digest in expected.items() if name.endswith(".h5")}
            expected |= final | caches
        # The folder of a build stands while it has segments to resume from; nobody needs the lock file in it.
        resumable = any(name.endswith(".h5") and ".parts/" in name for name in now)
        wanted = {name: digest for name, digest in expected.items() if resumable or Path(name).name != PLAN_NAME}
        extra = now.keys() - wanted.keys() - ({f"{self._scenario.out.name}.parts/{LOCK_NAME}"} if resumable else set())
        return {WRONG[0]: self._lost(now, wanted), WRONG[1]: ", ".join(sorted(extra))}

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

    def _lost(self, now: dict[str, str], wanted: dict[str, str]) -> str:
        """Files that were sealed, and are gone, altered or of no use."""
        for name, digest in wanted.items():
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


def campaign(world: World, commands: list[str], trials: int, own_processes: int, seed: int) -> DiskReport:
    """Let each command meet so many full disks."""
    rng, report = random.Random(seed), DiskReport()
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


def check_readers(world: World, report: DiskReport) -> None:
    """Commands that only read say the same on a full disk."""
    cache = world.disk.root / "t.h5"
    world.disk.wipe()
    shutil.copyfile(world.cache, cache)
    for words in (["cache", "info", str(cache)], ["cache", "verify", str(cache)]):
        before, full = attempt(world.disk, words), attempt(world.disk, words, Squeeze(FROM_THE_START, 0))
        world.disk.release()
        is_same = (before.exit_code, before.output) == (full.exit_code, full.output) == (0, before.output)
        found = dict.fromkeys(COUNTS, "") | {RIGHT[1]: "" if is_same else full.output}
        report.add_trial((" ".join(words[:2]), NO_WRITE), 0, found)


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
        if (exit_code := on_tmpfs([sys.executable, os.path.abspath(__file__), *words, "--disk"])) is not None:
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
    print(report.to_table(["command", "write that failed", *report.columns], report.rows))
    rooms = ", ".join(f"{name} {report.n_rooms(name)}" for name in arguments.command)
    print(f"\n{report.line(report.rows)['trials']} trials in {wall_s:.0f} s, seed {arguments.seed}, on {disk}.")
    print(f"Numbers of free bytes that were tried: {rooms}.")
    rows = [
        {"command": row[0], "write": row[1], **report.line([row]), "free_bytes": sorted(report.free_bytes[row])}
        for row in report.rows
    ]
    report.tell(arguments.json, {"seed": arguments.seed, "wall_s": wall_s, "disk": str(disk), "rows": rows})
    return int(bool(report.details))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
