"""A small torchrun: starts the ranks of commands as forks of one process that has imported all but computed nothing.

Arguments: a JSON file of cases, and the teacher that is loaded for none of them, so that its libraries are there. A
case has `words`, `n` ranks, `restarts`, and whom a `kill` or an `interrupt` of all meets where: [rank, step, count];
`room` is [rank, views that fit into its memory].
Prints the list of what came of them, as JSON. Like torchrun it sends SIGTERM to the others where one rank fails, and
starts all of them anew as often as it may.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pipeline.train  # noqa: F401 (imported once, for all forks)
from pipeline import build, cli
from pipeline.errors import OutOfMemory
from pipeline.teachers.teacher import Teacher
from pipeline.training.learner import Learner

_STEPS = {"pass": (Teacher, "embed"), "step": (Learner, "step")}
"""What a rank can be stopped at: a forward pass of the teacher, a step of the student."""


def stop_at(step: str, count: int, stop: Callable[[], None]) -> None:
    """Call `stop` before the `count`-th passage."""
    owner, name = _STEPS[step]
    function, passages = getattr(owner, name), 0

    def counting(*args: Any) -> Any:
        nonlocal passages
        passages += 1
        if passages == count:
            stop()
        return function(*args)

    setattr(owner, name, counting)


def have_room(n_views: int) -> None:
    """Let no more views fit into a pass."""
    embed = Teacher.embed

    def embed_few(self: Teacher, pixels: Any) -> Any:
        if len(pixels) > n_views:
            raise OutOfMemory(f"{len(pixels)} views do not fit")
        return embed(self, pixels)

    Teacher.embed = embed_few  # type: ignore[method-assign]


def work(case: dict[str, Any], rank: int, attempt: int, port: int, files: tuple[Path, Path]) -> int:
    """One rank, to its exit code."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    for number, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    n_ranks = case["n"]
    os.environ.update({
        "RANK": str(rank), "WORLD_SIZE": str(n_ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(n_ranks),
        "TORCHELASTIC_RESTART_COUNT": str(attempt), "TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    })  # fmt: skip
    build.SegmentedWriter = functools.partial(build.SegmentedWriter, segment_rows=16)  # type: ignore[misc,assignment]
    if case.get("kill") and case["kill"][0] == rank and not attempt:
        stop_at(*case["kill"][1:], lambda: os.kill(os.getpid(), signal.SIGKILL))
    if case.get("interrupt") and case["interrupt"][0] == rank:
        stop_at(*case["interrupt"][1:], lambda: os.kill(os.getppid(), signal.SIGUSR1))
    if case.get("room") and case["room"][0] == rank:
        have_room(case["room"][1])
    sys.argv = ["softlabel", *case["words"]]
    return cli.run(case["words"])


def run_group(case: dict[str, Any], attempt: int, folder: Path) -> list[int]:
    """The exit codes of the ranks, negative for signals."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids = []
    for rank in range(case["n"]):
        if not (pid := os.fork()):
            code = 70
            with contextlib.suppress(SystemExit):
                code = work(case, rank, attempt, port, (folder / "out", folder / "err"))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    signal.signal(signal.SIGUSR1, lambda *_: [os.kill(pid, signal.SIGINT) for pid in pids if pid not in codes])
    codes: dict[int, int] = {}
    deadline = time.monotonic() + 60
    while len(codes) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
            if codes[pid] and len(codes) == 1 and not case.get("interrupt"):
                for other in set(pids) - set(codes):
                    os.kill(other, signal.SIGTERM)
        elif time.monotonic() > deadline:
            for other in set(pids) - set(codes):
                os.kill(other, signal.SIGKILL)
        else:
            time.sleep(0.01)
    return [codes[pid] for pid in pids]


def main() -> None:
    """All cases, one after the other."""
    torch.set_num_threads(1)
    for teacher in sys.argv[2:]:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        for kind in (AutoImageProcessor, AutoModel, AutoTokenizer):
            kind.from_pretrained(teacher)
    cases = Path(sys.argv[1])
    results = []
    for number, case in enumerate(json.loads(cases.read_text())):
        folder = cases.with_name(f"group-{number}")
        folder.mkdir()
        codes = []
        for attempt in range(1 + case.get("restarts", 0)):
            codes.append(run_group(case, attempt, folder))
            if not any(codes[-1]):
                break
        results.append({"codes": codes, **{name: (folder / name).read_text() for name in ("out", "err")}})
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
