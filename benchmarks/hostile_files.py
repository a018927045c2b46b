"""Open thousands of files that somebody changed or made up, and count what is refused and what it costs.

Never mends a file by the product's own means. Run: OMP_NUM_THREADS=1 python benchmarks/hostile_files.py [--with child]
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache import CacheReader, Manifest, Table
from cache.errors import CacheError
from cache.fill import write_table
from cache.quarantine import examine
from pipeline.info import describe_cache_as_text
from reliability import mutants, strange, watched
from reliability.report import Report

COLUMNS = (
    "files",
    "refused",
    "accepted, same content",
    "accepted, consistent",
    "wrong",
    "ill told",
    "crashes",
    "hangs",
)
OFF = ("wrong", "ill told", "crashes", "hangs")
HANG_S = 5.0
KINDS = ("bytes", "metadata", "storage", "content", "manifest")
_SHARES = (35, 40, 10, 5, 10)
"""Of these kinds, in a hundred files."""


def original(path: Path) -> Path:
    """A cache of a few rows, with two tasks, params, a feature and names."""
    rng = np.random.default_rng(0)
    identity = {
        "tasks": [{"name": "class", "classes": ["mel", "nv", "bkl"]}, {"name": "sex", "classes": ["f", "m"]}],
        "view_columns": ["x", "y"], "precision": "fp32",
        "teacher": {"kind": "siglip", "weights_sha256": "00ff", "prompts": {"mel": ["melanoma"], "nv": ["naevus"]}},
        "views": {"seed": "0", "hflip_probability": (0.5).hex()},
    }  # fmt: skip
    table = Table(
        key=np.unique(rng.integers(0, 256, (5, 16), dtype=np.uint8), axis=0),
        first_row=np.array([0, 3, 4, 6, 8, 12], "<u8"),
        view=np.array([0, 1, 2, 0, 0, 5, 3, 4, 0, 1, 2, 3], "<u2"),
        params=rng.random((12, 2)).astype("<f4"),
        witness=rng.integers(0, 256, (12, 12), dtype=np.uint8),
        logits={"class": rng.normal(size=(12, 3)).astype("<f4"), "sex": rng.normal(size=(12, 2)).astype("<f4")},
        features={"embedding": rng.normal(size=(12, 4)).astype("<f2")},
        names=[f"mel/{number}.jpg" for number in range(5)],
    )
    provenance = {"created": "2026-01-01T00:00:00+00:00", "teacher": "t", "skipped": [{"key": "00", "reason": "bad"}]}
    write_table(path, Manifest(identity, provenance), table)
    return path


class Maker:
    """Hostile files by number."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed, self._sounds = seed, mutants.write_sounds(original(folder / "ours.h5"), folder)
        self._arrays = mutants.arrays_of(folder / "ours.h5")
        self.contents = {_content(CacheReader(folder / f"{one.name}.h5")) for one in self._sounds}

    def kind(self, number: int) -> str:
        """Which kind of file it is."""
        return self._rng(number).choices(KINDS, _SHARES)[0]

    def make(self, number: int, path: Path) -> None:
        """Write that file."""
        rng = self._rng(number)
        kind = rng.choices(KINDS, _SHARES)[0]
        path.unlink(missing_ok=True)
        if kind in ("bytes", "metadata"):
            change = mutants.by_chance if kind == "bytes" else mutants.in_metadata
            path.write_bytes(change(rng, self._sounds))
            return
        put = {"storage": strange.odd_storage, "content": strange.odd_content, "manifest": strange.odd_manifest}[kind]
        put(rng, {name: array.copy() for name, array in self._arrays.items()}, path)

    def _rng(self, number: int) -> random.Random:
        return random.Random(f"{self._seed}:{number}")


def in_process(path: Path, known: set[str]) -> tuple[str, str]:
    """What came of opening and reading a file here: a column, and what was said."""
    try:
        with CacheReader(path) as reader:
            reader.verify()
            content = _content(reader)
            shown = describe_cache_as_text(path)
            if not all(line.isprintable() for line in shown.split("\n")):
                return "ill told", shown
            return _judged(reader, path, content, known)
    except CacheError as error:
        return _told(error, path)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is counted)
        return "ill told", f"{type(error).__name__}: {error}"


def in_child(path: Path, known: set[str]) -> tuple[str, str]:
    """The same in a child process, which is told nothing but the file's name."""
    try:
        found = examine(path)
    except CacheError as error:
        return _told(error, path)
    except Exception as error:  # noqa: BLE001 (whatever it is, it is counted)
        return "ill told", f"{type(error).__name__}: {error}"
    with CacheReader(path) as reader:
        if found.content_id != reader.content_id or found.cache_id != reader.cache_id:
            return "wrong", "other ids"
        return _judged(reader, path, _content(reader), known)


def in_libhdf5(path: Path, known: set[str]) -> tuple[str, str]:
    """What libhdf5 does with the file, through h5py and without a line of ours: what it costs not to look first."""
    try:
        mutants.arrays_of(path)
    except Exception as error:  # noqa: BLE001 (h5py has no limit to what it raises)
        return "refused", str(error)
    return "accepted, consistent", ""


READERS: dict[str, Callable[[Path, set[str]], tuple[str, str]]] = {
    "guard": in_process, "child": in_child, "h5py": in_libhdf5,
}  # fmt: skip


def _told(error: CacheError, path: Path) -> tuple[str, str]:
    text = str(error)
    is_fine = text.isprintable() and len(text) < 2000 and str(path) in text
    return ("refused" if is_fine else "ill told"), text


def _content(reader: CacheReader) -> str:
    return f"{reader.content_id} {reader.manifest.to_bytes()!r} {reader.names}"


def _judged(reader: CacheReader, path: Path, content: str, known: set[str]) -> tuple[str, str]:
    """Whether what was accepted is what was sealed; by plain h5py, where it is another cache."""
    if content in known:
        return "accepted, same content", ""
    reader.table()
    arrays = mutants.arrays_of(path)
    is_consistent = strange.seal_of(arrays) == arrays["seal"].tobytes()
    strange.fit_seal(arrays)
    is_consistent &= strange.seal_of(arrays) == reader.seal
    return ("accepted, consistent" if is_consistent else "wrong"), "it is another cache than the one that was changed"


@dataclass
class Outcome:
    """What a campaign found."""

    report: Report
    slowest_s: float = 0.0
    peak_bytes: int = 0

    def add(self, kind: str, done: watched.Done) -> str:
        """Count one file; the column it is in."""
        if done.outcome is None:
            column, said, seconds = ("hangs" if done.end == "hang" else "crashes"), done.end, done.seconds
        else:
            column, said, seconds = done.outcome
        if seconds > HANG_S:
            column = "hangs"
        self.report.add(kind, "files")
        self.report.add(kind, column, 1, f"{kind} {done.number}: {said[:300]!a}" if column in OFF else "")
        self.slowest_s, self.peak_bytes = max(self.slowest_s, seconds), max(self.peak_bytes, done.peak_bytes)
        return column


def campaign(folder: Path, files: int, first: int, seed: int, reader: str, keep: Path | None = None) -> Outcome:
    """Open so many files; what should not be is in the report's details, and in `keep` as a file."""
    maker, victim, outcome = Maker(folder, seed), folder / "victim.h5", Outcome(Report(*COLUMNS))

    def work(number: int) -> tuple[str, str, float]:
        maker.make(number, victim)
        begun = time.perf_counter()
        column, said = READERS[reader](victim, maker.contents)
        return column, said, time.perf_counter() - begun

    for done in watched.watched(work, range(first, first + files), 4 * HANG_S):
        column = outcome.add(maker.kind(done.number), done)
        if keep is not None and column in OFF:
            maker.make(done.number, keep / f"{column.replace(' ', '-')}-{done.number}.h5")
        if (done.number - first) % 5000 == 4999:
            print(f"{done.number - first + 1:,} files, {len(outcome.report.details)} finds", file=sys.stderr)
    if reader == "child":
        outcome.peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return outcome


def parse(words: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, help="how many [100,000; 2,000 with a child]")
    parser.add_argument(
        "--with", dest="reader", choices=READERS, default="guard",
        help="open them here [guard], by cache.quarantine in a child with limits, or by h5py, which is ours in nothing",
    )  # fmt: skip
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="new folder to work in [a temporary one]")
    parser.add_argument("--keep", type=Path, help="folder for the files that should not be as they are")
    parser.add_argument("--json", type=Path, help="write the counts there, too")
    arguments = parser.parse_args(words)
    arguments.files = arguments.files or (2_000 if arguments.reader == "child" else 100_000)
    if arguments.files < 1 or arguments.first < 0:
        parser.error(f"expected 1 or more, got --files {arguments.files} --first {arguments.first}")
    if arguments.folder is not None and arguments.folder.exists():
        parser.error(f"{arguments.folder} exists: choose another --folder, or delete it")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Run the campaign, print its table; 1 if there was anything that should not be."""
    arguments = parse(words)
    started = time.perf_counter()
    memory_disk = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory_disk) as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        found = campaign(folder, arguments.files, arguments.first, arguments.seed, arguments.reader, arguments.keep)
    report, wall_s = found.report, time.perf_counter() - started
    print(report.to_table(["kind of file", *COLUMNS], [kind for kind in KINDS if kind in report.rows]))
    print(
        f"\n{arguments.files:,} files in {wall_s:.0f} s, seed {arguments.seed}; slowest {found.slowest_s:.2f} s, "
        f"most memory {found.peak_bytes / 1e6:.0f} MB."
    )
    told = {"wall_s": wall_s, "slowest_s": found.slowest_s, "peak_bytes": found.peak_bytes}
    report.tell(arguments.json, {"seed": arguments.seed, **told, "all": report.line(report.rows)})
    return int(bool(report.details))


if __name__ == "__main__":
    sys.exit(main())
