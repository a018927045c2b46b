"""What torchrun tells a process about its place among the ranks, and what of their words reaches the terminal.

The first rank prints lines, progress and results; another one speaks in warnings, and in an error that no rank told
before. The environment is read here and nowhere below. Importing this loads neither torch, numpy nor h5py.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping

import click

from pipeline.ranks import ALONE, JoinedRanks, Place, Ranks

_KNOWN_BY = "TORCHELASTIC_RUN_ID"
_USAGE_S = 3.0
"""The first rank, which tells a usage error, must not be ended by torchrun because another one was faster."""
_current: list[Ranks] = [ALONE]


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """That of this process; the only one where torchrun did not start it."""
    if _KNOWN_BY not in environment:
        return Place()
    names = {
        "rank": "RANK", "world_size": "WORLD_SIZE", "local_rank": "LOCAL_RANK",
        "local_world_size": "LOCAL_WORLD_SIZE", "restart_count": "TORCHELASTIC_RESTART_COUNT",
    }  # fmt: skip
    default = Place()
    numbers = {name: int(environment.get(word, getattr(default, name))) for name, word in names.items()}
    # One launcher a machine; its process is the parent of all ranks there, at every restart.
    launch = f"{socket.gethostname()} {os.getppid()} {environment[_KNOWN_BY]}"
    return Place(**numbers, launch=launch)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this command, which have met inside; ALONE, or a single one, have nobody to meet."""
    here = place()
    _current[0] = ranks = Ranks(here) if here.world_size == 1 else JoinedRanks(here)
    yield ranks
    ranks.leave()
    _current[0] = ALONE


def refuse_under_torchrun(context: click.Context, allowed: tuple[str, ...]) -> None:
    """UsageError for a command that would only run several times."""
    if place().world_size > 1 and context.invoked_subcommand not in allowed:
        words = f"{context.command_path} {context.invoked_subcommand}"
        raise click.UsageError(f"`{words}` runs in one process: start it without torchrun")


def command_words() -> str:
    """How a command starts that does the same as this one: with torchrun, if it was started so."""
    here = place()
    if here.world_size == 1:
        return "softlabel"
    nodes = here.world_size // here.local_world_size
    more = f"--nnodes {nodes} ... " if nodes > 1 else ""
    return f"torchrun {more}--nproc-per-node {here.local_world_size} $(which softlabel)"


def silence_others() -> None:
    """Results go to the standard output of the first rank alone."""
    if not place().is_first:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it is open to the end)


def may_show(exit_code: int) -> bool:
    """Whether this rank shows what click has to say: usage, or the line that goes on after an interrupt."""
    here = place()
    if not here.is_first and exit_code == 2:
        time.sleep(_USAGE_S)
    return here.is_first


def told(message: str) -> str | None:
    """An error in this rank's words; None where another rank has told one before. torchrun repeats it at its end."""
    here = place()
    if not _current[0].may_speak():
        return None
    message = message if here.is_first else f"rank {here.rank}: {message}"
    if here.world_size > 1 and (path := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": message, "timestamp": int(time.time())}, file)
    return message


def leave(exit_code: int) -> None:
    """End a rank that failed, at once: NCCL would wait for the others, which wait for this one to end."""
    if exit_code and not _current[0].is_alone:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(exit_code)
