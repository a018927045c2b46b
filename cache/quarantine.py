"""Open a stranger's file in a process that may crash, and believe it nothing but five plain values.

Limits of that process, on Linux: memory, processor time, real time, no file written, no core, few files open, an empty
environment. macOS may ignore the limit of memory; Windows has none of these: there, real time alone is limited. It is
no sandbox: it runs as whoever called. Never opens the file in the calling process.
Run: `softlabel cache pull STORE/ID -o t.h5`
"""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import durable, quarantine_child
from cache.errors import CacheDamaged, CacheError, CacheNewer, CacheNotFound, printable, shortened

MEMORY_BYTES = 1 << 30
"""Of address space, and `MEMORY_PER_BYTE` for each byte of the file: a million samples took 0.54 GB for 0.43."""
MEMORY_PER_BYTE = 2
WALL_S = 60.0
CPU_S = 60
BYTES_PER_S = 10_000_000
"""The least that a drive, or a network's, is expected to read; the check itself does 300 MB/s."""
MAX_ANSWER_BYTES = 8192
_HEX = re.compile(r"[0-9a-f]{64}")
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
"""Of the environment: where libraries are found, and what Windows starts nothing without."""


@dataclass(frozen=True)
class Examined:
    """What a sound file is, by the word of the process that read it."""

    recipe_id: str
    cache_id: str
    content_id: str
    n_samples: int
    n_rows: int


def examine(path: Path) -> Examined:
    """Check all of a file in a child process: layout, seal, every CRC, order, finite numbers, harmless names.

    CacheDamaged where anything is off, also where the check had to be stopped; CacheNewer for a later format;
    CacheError where the check could not even begin.
    """
    path = Path(os.path.abspath(path))
    n_bytes = _bytes_on_disk(path)
    wall_s = WALL_S + n_bytes / BYTES_PER_S
    limits = {
        "memory": MEMORY_BYTES + MEMORY_PER_BYTE * n_bytes, "cpu": int(CPU_S + n_bytes / BYTES_PER_S),
        "wall": int(wall_s) + 1,
    }  # fmt: skip
    content, exit_code = _run(path, limits, wall_s)
    started, _, answer = content.partition(b"\n")
    if started != quarantine_child.STARTED:
        raise CacheError(
            f"cannot check {path}: a second Python did not start ({printable(shortened(repr(content)))}, exit code "
            f"{exit_code}); does `{sys.executable} -I -c 'import h5py'` work?"
        )
    if exit_code != 0:
        raise _stopped(path, _reason(exit_code, limits))
    return _believed(path, answer, limits)


def _bytes_on_disk(path: Path) -> int:
    """Without the holes of a sparse file, which cost whoever made it nothing."""
    try:
        with durable.open_to_read(path) as file:
            status = os.fstat(file.fileno())
    except FileNotFoundError as error:
        raise CacheNotFound(f"no cache at {path}: is the path right?") from error
    except OSError as error:
        raise CacheError(f"cannot open {path}: {error.strerror}") from error
    on_disk = 512 * getattr(status, "st_blocks", 0)
    return min(status.st_size, on_disk) if on_disk else status.st_size


def _run(path: Path, limits: dict[str, int], wall_s: float) -> tuple[bytes, int]:
    """(what the child said, its exit code); it is gone afterwards, whatever happens here."""
    child = quarantine_child.__file__
    folders = [*_folders("numpy"), *_folders("h5py")]
    words = [json.dumps({"path": os.fsencode(path).hex(), "folders": folders, **limits})]
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment["HDF5_PLUGIN_PRELOAD"] = "::"  # no filters from anywhere
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", "-X", "utf8", child, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=environment, cwd=os.sep, close_fds=True,
    )  # fmt: skip
    said: list[bytes] = []
    assert process.stdout is not None
    pipe = process.stdout
    listener = threading.Thread(target=lambda: said.append(pipe.read(MAX_ANSWER_BYTES + 1)), daemon=True)
    try:
        deadline_s = time.monotonic() + wall_s
        listener.start()
        listener.join(wall_s)
        if not said:
            raise _stopped(path, f"it took more than {wall_s:.0f} s")
        if len(said[0]) > MAX_ANSWER_BYTES:
            raise _stopped(path, "it answered with more than was asked")
        try:
            return said[0], process.wait(max(1.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise _stopped(path, f"it took more than {wall_s:.0f} s") from None
    finally:
        process.kill()
        process.wait()
        listener.join()
        pipe.close()


def _folders(package: str) -> list[str]:
    """Where this process has a package from, which may be the user's own folder, that an isolated Python leaves out."""
    spec = importlib.util.find_spec(package)
    return [str(Path(spec.origin).parents[1])] if spec is not None and spec.origin is not None else []


def _stopped(path: Path, reason: str) -> CacheDamaged:
    return CacheDamaged(f"{path} is not a sound cache: opening it was stopped, {reason}. {_advice()}")


def _advice() -> str:
    return "Pull it again, or ask whoever made it"


def _reason(exit_code: int, limits: dict[str, int]) -> str:
    if exit_code == -getattr(signal, "SIGXCPU", 0):
        return f"it needed more than {limits['cpu']:,} s of a processor"
    if exit_code == -getattr(signal, "SIGALRM", 0):
        return f"it took more than {limits['wall']:,} s"
    if exit_code in (-getattr(signal, "SIGKILL", 0), -getattr(signal, "SIGABRT", 0)):
        return "the system ended it, as it does where memory runs out"
    return f"its reader crashed (exit code {exit_code})"


def _believed(path: Path, answer: bytes, limits: dict[str, int]) -> Examined:
    """The answer, if it is one of the few that there are; the child may be in a stranger's hands."""
    try:
        found: Any = json.loads(answer.decode("ascii"))
    except (ValueError, RecursionError):
        found = None
    kind, text = (found.get("error"), found.get("text")) if isinstance(found, dict) else (None, None)
    if kind == "memory":
        raise _stopped(path, f"it needed more than {limits['memory'] / 1e9:.1f} GB of memory")
    if isinstance(text, str) and kind in ("damaged", "newer", "other"):
        told = printable(shortened(text, 1000))
        error = {"damaged": CacheDamaged, "newer": CacheNewer, "other": CacheError}[kind]
        raise error(told if str(path) in told else f"{path} is not a sound cache: {told}. {_advice()}")
    if not isinstance(found, dict) or set(found) != set(Examined.__dataclass_fields__):
        raise _stopped(path, "it answered with something else than was asked")
    ids, counts = list(found.values())[:3], list(found.values())[3:]
    are_ids = all(isinstance(one, str) and _HEX.fullmatch(one) for one in ids)
    if list(found) != list(Examined.__dataclass_fields__) or not are_ids:
        raise _stopped(path, "it answered with something else than was asked")
    if not all(type(count) is int and 0 < count < 2**53 for count in counts):
        raise _stopped(path, "it answered with something else than was asked")
    return Examined(**found)
