"""Ask the product about one file after another, in a process that may crash or hang over it."""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from cache import CacheReader
from cache.errors import CacheError
from pipeline.cli import run
from reliability import forks
from reliability.specimens import Specimen

# What a training start compares with its checksums.
TRAINING_READS = ("rows/params", "rows/witness", "logits/0")
SMALL_OBJECTS = ("samples/key", "samples/first_row", "rows/view")


@dataclass(frozen=True)
class Verdict:
    """What the product said of one damaged file."""

    exit_code: int | None
    """Of `cache verify`; None for a process that crashed or hung."""
    printed: str
    error: str
    opening_refuses: bool = False
    training_refuses: bool = False
    is_wrong: bool = False
    """A row, key or name came that is not the sealed one, after a check that covers it had passed."""


def examine(path: Path, specimen: Specimen, outputs: tuple[Path, Path]) -> Verdict:
    """Ask the command line, the reader and training's start about one file."""
    for output in outputs:
        os.truncate(output, 0)
    exit_code = run(["cache", "verify", str(path)])
    sys.stdout.flush()
    printed, error = (output.read_text("utf-8", "replace") for output in outputs)
    readers: list[CacheReader] = []
    training_refuses = True
    with suppress(CacheError):
        readers = [CacheReader(path), CacheReader(path, memory_map=False)]
        readers[1].verify_objects(TRAINING_READS)
        training_refuses = False
    covered = [] if training_refuses else [*TRAINING_READS]
    if exit_code == 0:
        covered = list(specimen.row_bytes)
    is_wrong = bool(covered) and any(_hands_out_other(reader, specimen, covered) for reader in readers)
    for reader in readers:
        reader.close()
    return Verdict(exit_code, printed, error, not readers, training_refuses, is_wrong)


def _hands_out_other(reader: CacheReader, specimen: Specimen, covered: list[str]) -> bool:
    """Whether anything differs from the sealed bytes; an error is no answer, so it does not."""
    try:
        found = {name: reader.read_object(name, slice(0, reader.n_rows)).tobytes() for name in covered}
        small = (reader.keys, reader.first_row, reader.view)
        found |= {name: array.tobytes() for name, array in zip(SMALL_OBJECTS, small, strict=True)}
        found["manifest"] = reader.manifest.to_bytes()
        names = b"".join(name.encode("utf-8", "surrogateescape") for name in reader.names or [])
    except CacheError:
        return False
    is_other = any(found[name] != specimen.values[name] for name in found)
    return is_other or names != specimen.values["samples/name"].replace(b"\0", b"")


class Examiner:
    """A forked process that examines files; one that crashes or hangs is a verdict, and another one takes over."""

    def __init__(self, folder: Path, specimens: dict[str, Specimen]) -> None:
        self._outputs = (folder / "printed.txt", folder / "error.txt")
        self._specimens = specimens
        self._start()

    def _start(self) -> None:
        for output in self._outputs:
            output.write_bytes(b"")
        self._ours, theirs = Pipe()
        self._process = forks.fork(lambda: self._serve(theirs))
        theirs.close()

    def _serve(self, connection: Connection) -> None:
        self._ours.close()
        forks.speak_into(*(os.open(output, os.O_WRONLY | os.O_APPEND) for output in self._outputs))
        with suppress(EOFError):
            while True:
                path, name = connection.recv()
                connection.send(examine(path, self._specimens[name], self._outputs))

    def ask(self, path: Path, specimen: str) -> Verdict:
        """What the product says of a file that was this specimen."""
        self._ours.send((path, specimen))
        with suppress(EOFError):
            if self._ours.poll(forks.HANG_S):
                verdict: Verdict = self._ours.recv()
                return verdict
            self._process.kill()
        self._process.join()
        last_words = self._outputs[1].read_text("utf-8", "replace")[-600:]
        self.close()
        exit_code = self._process.exitcode
        self._start()
        return Verdict(None, "", f"ended with {exit_code}: {last_words}")

    def close(self) -> None:
        """End the process."""
        self._ours.close()
        self._process.join()
