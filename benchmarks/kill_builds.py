"""Kill `softlabel cache build` with SIGKILL at every step, repeat the command, and count what is lost.

Never mends anything between a kill and the next start. Run: OMP_NUM_THREADS=1 python benchmarks/kill_builds.py
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch

import pipeline.build  # noqa: F401 (forked builds find it imported)
from cache import CacheReader
from cache.errors import CacheError
from pipeline.demo.lesions import write_lesions
from reliability import forks, tiny
from reliability.contents import Pair, digests, finals, identity_of, rows_of
from reliability.plans import ANY_MOMENT, ANY_MOMENT_SHARES, STEPS, Kill, Plan, draw_plans
from reliability.plug import Plug
from reliability.report import Report

VIEWS = 4
BROKEN_IMAGE = Path("train", "melanoma", "00000.png")
POLL_S = 0.004
DAMAGES = (
    "rows lost", "silently wrong rows", "failed resumes", "leftovers", "unopenable finals", "processes left",
    "not reached",
)  # fmt: skip


class World:
    """What all trials share: image sets, a teacher, and the caches of undisturbed builds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.teacher, self.trials = folder, folder / "teacher", folder / "trials"
        tiny.shrink_segments()
        self._write_images()
        tiny.write_teacher(self.teacher, self.images("all"))
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

    def _reference(self, name: str, images: str, *options: str) -> float:
        """Build one cache undisturbed; seconds."""
        out = self.cache(name)
        out.parent.mkdir(exist_ok=True)
        started = time.perf_counter()
        forks.must(self.command(self.images(images), out, *options))
        return time.perf_counter() - started

    def command(self, images: Path, out: Path, *options: str) -> list[str]:
        """The arguments of one build; a later option overrides an earlier one."""
        setting = ["--views", str(VIEWS), "--batch-size", "8", "--device", "cpu", "--precision", "fp32"]
        return ["cache", "build", str(images), "-o", str(out), "--teacher", str(self.teacher), *setting, *options]


class Trial:
    """One output file on its way through kills and resumes."""

    def __init__(self, world: World, plan: Plan, report: Report, orphans: forks.Orphans) -> None:
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
        n_details = len(self._report.details)
        self._out.parent.mkdir(parents=True)
        shutil.copytree(self._world.images(self._image_set), self._images)
        if self._plan.scenario.base:
            shutil.copy(self._world.cache(self._plan.scenario.base), self._out)
            self._look()
        for action in self._plan.actions:
            if isinstance(action, Kill):
                self._killed_run(action)
            elif action in ("break", "change"):
                scenario = self._plan.scenario
                self._image_set = scenario.between if action == "break" else scenario.later_images
                shutil.rmtree(self._images)
                shutil.copytree(self._world.images(self._image_set), self._images)
            else:
                self._full_run()
        if self._is_resumed:
            self._check_end()
        if len(self._report.details) == n_details:
            shutil.rmtree(self.folder)

    def _count(self, damage: str, n: int, detail: str = "") -> None:
        self._report.add(self._step, damage, n, f"{self._where} {detail}")

    @property
    def _where(self) -> str:
        what = f"{self._plan.scenario.name}{', one worker' * self._plan.workers}"
        return f"trial {self._plan.number} ({what}, killed at {'; '.join(self._plan.steps)}), start {self._attempts}"

    def _killed_run(self, kill: Kill) -> None:
        self._step = kill.step
        exit_code, is_killed = self._attempt(kill)
        if is_killed:
            self._report.add(kill.step, "kills")
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

        def prepare() -> None:
            os.setpgrp()  # so that whatever it starts can be found when it is gone
            Plug(self._out, journal, named_kill).install()

        with open(self._log, "ab") as log:
            process = forks.start(self._world.command(self._images, self._out, *options), log.fileno(), prepare)
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
            if wall_s > forks.HANG_S or (kill_after_s is not None and wall_s >= kill_after_s):
                process.kill()
                process.join()
            self._verify_new_finals()
        return time.perf_counter() - started > forks.HANG_S

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
        return self._log.read_text("utf-8", "replace")[-600:]


def campaign(world: World, kills: int, seed: int, steps: list[str]) -> tuple[Report, Counter[str]]:
    """Kill builds so many times, spread over the steps; also the number of trials by scenario."""
    rng, report, scenarios = random.Random(seed), Report("kills", *DAMAGES), Counter[str]()
    orphans = forks.Orphans(report)
    shares = steps + [ANY_MOMENT] * (ANY_MOMENT_SHARES - 1) * (ANY_MOMENT in steps)
    quota = Counter(shares[number % len(shares)] for number in range(kills))
    n_trials = missing = 0
    plans = draw_plans(quota, rng)
    # Random moments that came too late are drawn again, but not for ever.
    while plans and n_trials < 4 * kills:
        for plan in plans:
            scenarios[plan.scenario.name] += 1
            scenarios["with a worker"] += plan.workers
            Trial(world, plan, report, orphans).run()
            orphans.check(wait=False)
        n_trials += len(plans)
        missing = quota[ANY_MOMENT] - report.counts[ANY_MOMENT, "kills"]
        plans = draw_plans(Counter({ANY_MOMENT: missing}), rng, n_trials)
    report.add(ANY_MOMENT, "not reached", missing, "every build was over before")
    orphans.check(wait=True)
    return report, scenarios


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
        report, scenarios = campaign(world, arguments.kills, arguments.seed, arguments.step)
    wall_s = time.perf_counter() - started
    total = report.line(arguments.step)
    print(report.to_table(["killed at", *report.columns], arguments.step))
    trials = ", ".join(f"{name} {n}" for name, n in sorted(scenarios.items()) if n)
    print(f"\n{total['kills']} kills in {wall_s:.0f} s, seed {arguments.seed}. Trials: {trials}.")
    steps = {step: report.line([step]) for step in arguments.step}
    result = {"seed": arguments.seed, "wall_s": wall_s, "total": total, "steps": steps, "scenarios": scenarios}
    report.tell(arguments.json, result)
    return int(any(total[name] for name in DAMAGES))


if __name__ == "__main__":
    sys.exit(main())
