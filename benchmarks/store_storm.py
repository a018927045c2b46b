"""Many `softlabel cache push` and `pull` at once, over a line that breaks, some killed, each repeated until it is done.

Counts what is lost, half or wrong in the end: in a folder and behind a real S3 API (moto's server, on loopback).
Run: OMP_NUM_THREADS=1 python benchmarks/store_storm.py
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import requests

from cache import CacheReader, Manifest, Table
from cache.errors import CacheError
from cache.fill import write_table
from cache.store import Patience, Store
from reliability.bad_line import KINDS, BadLine, Fault
from reliability.report import Report

STORES = ("folder", "s3")
DAMAGES = ("lost", "half or wrong", "told badly", "hung", "left over")
COLUMNS = ("commands", "starts", "killed", "ended by the line", "finished", *DAMAGES)
MAX_STARTS = 12
HANG_S = 180.0
_NO_KILL_AFTER = 4
_PARTS = (".push-", ".parts")


@dataclass(frozen=True)
class Job:
    """One command, to be repeated until it is done."""

    number: int
    store: str
    verb: str
    source: Path
    content_id: str
    out: Path

    @property
    def row(self) -> tuple[str, str]:
        """Of the table."""
        return self.store, self.verb


class World:
    """Caches to push, two stores, and the line to one of them."""

    def __init__(self, folder: Path, *, n_small: int, n_large: int) -> None:
        from moto.server import ThreadedMotoServer

        self.folder, self.sources = folder, list[tuple[Path, str]]()
        (folder / "out").mkdir(parents=True)
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.port = int(self._server.get_host_and_port()[1])
        requests.put(f"http://127.0.0.1:{self.port}/storm", timeout=10).raise_for_status()
        self.line = BadLine(self.port)
        self.urls = {"folder": str(folder / "store"), "s3": "s3://storm/caches"}
        for number in range(n_small + n_large):
            self._write(number, width=200 if number < n_small else 50_000)

    def _write(self, number: int, width: int) -> None:
        """The same rows in two files, whose provenance differs."""
        rng = np.random.default_rng(number)
        n_samples = 100
        key = np.unique(rng.integers(0, 256, (n_samples, 16), dtype=np.uint8), axis=0)
        views = np.tile(np.arange(2, dtype="<u2"), n_samples)
        table = Table(
            key=key, first_row=np.arange(0, 2 * n_samples + 1, 2, dtype="<u8"), view=views,
            params=rng.random((len(views), 1)).astype("<f4"),
            witness=rng.integers(0, 256, (len(views), 12), dtype=np.uint8),
            logits={"class": rng.normal(size=(len(views), 2)).astype("<f4")},
            features={"embedding": (rng.integers(0, 1 << 16, (len(views), width), np.uint16) & 0x3BFF).view("<f2")},
            names=[f"Doe_John/{one}.jpg" for one in range(n_samples)],
        )  # fmt: skip
        identity = {"tasks": [{"name": "class", "classes": ["a", "b"]}], "view_columns": ["x"], "number": number % 2}
        for twin in range(2):
            said = {"teacher": f"t{number}", "created": f"2026-01-0{twin + 1}T00:00:00+00:00", "user": "Doe_John"}
            path = self.folder / f"{number}-{twin}.h5"
            write_table(path, Manifest(identity, said), table)
            self.sources.append((path, CacheReader(path, memory_map=False).content_id))

    def environment(self, port: int) -> dict[str, str]:
        """For commands that reach the server through this port."""
        own = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "key", "OMP_NUM_THREADS": "1",
            "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
            "XDG_STATE_HOME": str(self.folder / "state"),
        }  # fmt: skip
        return {**os.environ, **own}

    def jobs(self, count: int, rng: random.Random) -> list[Job]:
        """Pushes and pulls of all sources and stores, in a random order; no pull stands before a push of its rows."""
        found = []
        for number in range(count):
            store = STORES[number % 2]
            verb = "push" if number // 2 % 2 == 0 else "pull"
            source, content_id = self.sources[(number // 4) % len(self.sources)]
            out = self.folder / "out" / f"{number}.h5"
            found.append(Job(number, store, verb, source, content_id, out))
        rng.shuffle(found)
        first = {(job.store, job.content_id): at for at, job in reversed(list(enumerate(found))) if job.verb == "push"}
        places = {job: max(at, first[job.store, job.content_id]) for at, job in enumerate(found)}
        return sorted(found, key=lambda job: (places[job], job.verb == "pull"))

    def close(self) -> None:
        """Line and server."""
        self.line.__exit__(None, None, None)
        self._server.stop()


class Storm:
    """All jobs, some at a time."""

    def __init__(self, world: World, report: Report, seed: int, kill_share: float) -> None:
        self.world, self.report, self.seed, self.kill_share = world, report, seed, kill_share
        self._lock = threading.Lock()
        self.done: set[Job] = set()

    def run(self, jobs: list[Job], at_once: int) -> None:
        """Each until it is done, or as often as may be."""
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(self._repeat, jobs))

    def _count(self, job: Job, column: str, detail: str = "") -> None:
        with self._lock:
            self.report.add(job.row, column, 1, detail)

    def _repeat(self, job: Job) -> None:
        rng = random.Random(f"{self.seed} {job.number}")
        self._count(job, "commands")
        start = 0
        while start < MAX_STARTS:
            start += not self._waits_for_its_push(job)
            self._count(job, "starts")
            is_killed = start <= _NO_KILL_AFTER and rng.random() < self.kill_share
            code, said = self._start(job, rng.uniform(0.2, 2.5) if is_killed else None)
            if code == 0:
                self._count(job, "finished")
                self.done.add(job)
                return
            if code == -signal.SIGKILL:
                self._count(job, "killed")
            elif code == 1 and said.count("Error: ") == 1 and "Traceback" not in said and "Doe" not in said:
                self._count(job, "ended by the line")
                time.sleep(0.3)
            else:
                self._count(job, "hung" if code is None else "told badly", f"{job.row}: {code}: {said[-500:]}")
        self._count(job, "lost", f"{job.row} {job.number}: not done after {MAX_STARTS} starts: {said[-300:]}")

    def _waits_for_its_push(self, job: Job) -> bool:
        """Such a pull is told that there is nothing, as often as it asks."""
        same = {done.content_id for done in list(self.done) if (done.store, done.verb) == (job.store, "push")}
        return job.verb == "pull" and job.content_id not in same

    def _start(self, job: Job, kill_after_s: float | None) -> tuple[int | None, str]:
        url = self.world.urls[job.store]
        words = (
            ["push", str(job.source), url, "--yes"] if job.verb == "push"
            else ["pull", f"{url}/{job.content_id[:12]}", "-o", str(job.out)]
        )  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "softlabel", "cache", *words, "--timeout", "3"], text=True, cwd=self.world.folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=self.world.environment(self.world.line.port),
        )  # fmt: skip
        timer = threading.Timer(kill_after_s or HANG_S, process.kill)
        timer.start()
        said, _ = process.communicate()
        timer.cancel()
        is_hung = process.returncode == -signal.SIGKILL and kill_after_s is None
        return (None if is_hung else process.returncode), said


def plan(rng: random.Random, share: float) -> Fault | None:
    """The fault of one connection: after some bytes, small numbers as likely as large ones."""
    if rng.random() > share:
        return None
    return Fault(rng.choice(KINDS), int(10 ** rng.uniform(2, 7)))


def examine(world: World, storm: Storm, report: Report) -> None:
    """Look at all that stands, over a line that is good again."""
    os.environ.update(world.environment(world.port))
    for name in STORES:
        store = Store(world.urls[name], patience=Patience(read_s=20))
        _examine_store(store, name, storm, report)
    for job in storm.done:
        if job.verb == "pull":
            with CacheReader(job.out, memory_map=False) as reader:
                is_right = reader.content_id == job.content_id
            report.add(job.row, "half or wrong", int(not is_right), f"{job.out} has other rows")
    left = [path.name for path in (world.folder / "out").iterdir() if path.name.endswith(".parts")]
    # What a killed push laid beside its cache goes with the next push of that cache.
    left += [path.name for path in world.folder.iterdir() if all(part in path.name for part in _PARTS)]
    report.add(("any", "end"), "left over", len(left), f"left over: {left}")


def _examine_store(store: Store, name: str, storm: Storm, report: Report) -> None:
    row, sizes, listing = (name, "end"), store.files.sizes(), store.listing()
    report.add(row, "half or wrong", len(listing.broken), "; ".join(listing.broken))
    for file, n_bytes in sizes.items():
        last = file.rpartition("/")[2]
        if last.startswith("."):
            continue  # hidden, and no name that anybody looks for
        if last.endswith(".h5"):
            found = hashlib.sha256(store.files.read(file, 0, n_bytes)).hexdigest()
            report.add(row, "half or wrong", int(found not in file), f"{file} has other bytes than its name says")
        elif not last.endswith(".json"):
            report.add(row, "left over", 1, file)
    for entry in listing.entries:
        if sizes.get(entry.data_name) != entry.n_bytes:
            report.add(row, "half or wrong", 1, f"{entry.name} points to nothing whole")
    pushed = {job.content_id for job in storm.done if (job.store, job.verb) == (name, "push")}
    for content_id in sorted(pushed):
        report.add(row, "commands")
        out = storm.world.folder / f"end-{name}-{content_id[:8]}.h5"
        try:
            pulled = store.pull(store.find(content_id), out)
            is_right = CacheReader(pulled, memory_map=False).content_id == content_id
        except CacheError as error:
            report.add(row, "lost", 1, str(error))
            continue
        report.add(row, "finished" if is_right else "half or wrong")


def parse(words: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=int, default=50, help="pushes and pulls, half of each, in both stores")
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill-share", type=float, default=0.4, help="of the first starts of each command")
    parser.add_argument("--fault-share", type=float, default=0.5, help="of the connections")
    parser.add_argument("--smoke", action="store_true", help="a few commands and small caches alone")
    parser.add_argument("--folder", type=Path, help="new folder to work in; it stays [a temporary one]")
    parser.add_argument("--json", type=Path, help="write the counts there, too")
    arguments = parser.parse_args(words)
    if arguments.commands < 8 or arguments.at_once < 1:
        parser.error(f"--commands must be at least 8, got {arguments.commands}, and --at-once 1 or more")
    if arguments.folder is not None and arguments.folder.exists():
        parser.error(f"{arguments.folder} exists: choose another --folder, or delete it")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Run the storm, print its table; 1 if anything was damaged."""
    arguments = parse(words)
    n_commands, n_small, n_large = (4, 1, 0) if arguments.smoke else (arguments.commands, 3, 2)
    started, rng, faults = time.perf_counter(), random.Random(arguments.seed), random.Random(arguments.seed + 1)
    report = Report(*COLUMNS)
    with tempfile.TemporaryDirectory() as temporary:
        world = World((arguments.folder or Path(temporary)) / "storm", n_small=n_small, n_large=n_large)
        world.line.plan = lambda number: plan(faults, arguments.fault_share)
        storm = Storm(world, report, arguments.seed, arguments.kill_share)
        storm.run(world.jobs(n_commands, rng), arguments.at_once)
        wall_s = time.perf_counter() - started
        examine(world, storm, report)
        line = world.line
        world.close()
    total = Counter(report.line(report.rows))
    print(report.to_table(["store", "command", *COLUMNS], sorted(report.rows)))
    megabytes = {way: round(n_bytes / 1e6, 1) for way, n_bytes in line.carried_bytes.items()}
    print(
        f"\n{n_commands} commands, {arguments.at_once} at once, {wall_s:.0f} s, seed {arguments.seed}; {line.broken:,} "
        f"of {line.connections:,} connections broken, {megabytes['up']} MB up, {megabytes['down']} MB down."
    )
    result = {"seed": arguments.seed, "wall_s": wall_s, "total": total, "broken": line.broken,
              "connections": line.connections, "carried_mb": megabytes}  # fmt: skip
    report.tell(arguments.json, result)
    return int(any(total[name] for name in DAMAGES))


if __name__ == "__main__":
    sys.exit(main())
