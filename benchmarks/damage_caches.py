"""Flip bits everywhere in real caches and cut them off, and count what `softlabel cache verify` does not notice.

Never mends a file by the product's own means, and finds out from the file itself, not from the product, where its
objects, headers and gaps lie. Run: OMP_NUM_THREADS=1 python benchmarks/damage_caches.py

R rows, D embedding.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from cache import CacheReader, Manifest, Table
from cache.errors import CacheError
from cache.fill import write_table
from data.samples import FOLDER_TASK, scan_folder
from data.views import COLUMNS
from pipeline.cli import run
from pipeline.demo.lesions import write_lesions
from pipeline.teachers.fit import SmallSiglip, new_siglip
from pipeline.teachers.prompts import default_prompts

Span = tuple[int, int]

SUPERBLOCK, HEADERS, GAPS = "HDF5 superblock", "HDF5 object headers", "unused gaps"
SUPERBLOCK_BYTES = 48
CONTINUATION = 0x10
TO_NOTHING, ONE_BYTE, INSIDE, ANY_LENGTH = "to 0 bytes", "by 1 byte", "inside each object", "to a random length"
CUTS = (TO_NOTHING, ONE_BYTE, INSIDE, ANY_LENGTH)
# What a training start compares with its checksums.
TRAINING_READS = ("rows/params", "rows/witness", "logits/0")
SMALL_OBJECTS = ("samples/key", "samples/first_row", "rows/view")
CLASSES, EMBEDDING_SIZE, MERGED_SAMPLES, MERGED_VIEWS = 1000, 1152, 500, 4
HANG_S = 120.0
COUNTS = (
    "refused at opening", "refused at training's start", "refused by verify", "undetected", "silently wrong",
    "ill told",
)  # fmt: skip
OFF = ("undetected", "silently wrong", "ill told")


@dataclass(frozen=True, eq=False)
class Specimen:
    """A sound cache file, byte by byte, and where its parts lie."""

    name: str
    content: bytes
    spans: dict[str, list[Span]]
    """(start, stop) of every byte of the file, by object; superblock, object headers and gaps are objects here."""
    values: dict[str, bytes]
    """The sealed bytes of each object as plain h5py reads them."""
    row_bytes: dict[str, int]
    """Bytes of one entry of the objects that have a CRC table."""


@dataclass(frozen=True)
class Damage:
    """One bit of one byte flipped, or, where `bit` is -1, the file cut off before that byte."""

    specimen: str
    where: str
    byte: int
    bit: int = -1

    def __str__(self) -> str:
        done = "cut off before" if self.bit < 0 else f"bit {self.bit} flipped in"
        return f"{self.specimen}, {self.where}: {done} byte {self.byte:,}"


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


def dissect(path: Path, name: str) -> Specimen:
    """A specimen of a sound file."""
    content, spans, values, row_bytes = path.read_bytes(), dict[str, list[Span]](), dict[str, bytes](), dict[str, int]()

    def visit(full_name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            start = item.id.get_offset()
            spans[full_name] = [(start, start + item.id.get_storage_size())]
            values[full_name] = item[()].tobytes()
            row_bytes[full_name] = item.id.get_storage_size() // item.shape[0]

    with h5py.File(path, "r", locking=False) as h5:
        h5.visititems(visit)
    row_bytes = {big: n_bytes for big, n_bytes in row_bytes.items() if f"crc32/{big}" in spans}
    spans[SUPERBLOCK] = [(0, SUPERBLOCK_BYTES)]
    spans[HEADERS] = list(_headers(content, [span for listed in spans.values() for span in listed]))
    gaps = list(_between([span for listed in spans.values() for span in listed], len(content)))
    if any(any(content[start:stop]) for start, stop in gaps):
        raise RuntimeError(f"{path}: bytes that belong to nothing are not zero")
    if gaps:
        spans[GAPS] = gaps
    return Specimen(name, content, spans, values, row_bytes)


def _headers(content: bytes, objects: list[Span]) -> Iterator[Span]:
    """The object headers of HDF5 (version 2), with their continuations; found by signature, measured by length."""
    for start, stop in _between(objects, len(content)):
        for match in re.finditer(b"OHDR\x02", content[start:stop]):
            header = start + match.start()
            flags = content[header + 5]
            at = header + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
            width = 1 << (flags & 3)
            n_bytes = int.from_bytes(content[at : at + width], "little")
            messages = (at + width, at + width + n_bytes)
            yield header, messages[1] + 4
            yield from _continuations(content, messages, 6 if flags & 4 else 4)


def _continuations(content: bytes, messages: Span, head_bytes: int) -> Iterator[Span]:
    at, stop = messages
    while at + head_bytes <= stop:
        body, n_bytes = at + head_bytes, int.from_bytes(content[at + 1 : at + 3], "little")
        if content[at] == CONTINUATION:
            start = int.from_bytes(content[body : body + 8], "little")
            length = int.from_bytes(content[body + 8 : body + 16], "little")
            yield start, start + length
            yield from _continuations(content, (start + 4, start + length - 4), head_bytes)
        at = body + n_bytes


def _between(spans: list[Span], n_bytes: int) -> Iterator[Span]:
    """What the spans leave over."""
    at = 0
    for start, stop in [*sorted(spans), (n_bytes, n_bytes)]:
        if start > at:
            yield at, start
        at = max(at, stop)


def built_cache(folder: Path) -> Path:
    """A small cache by the real `cache build`: everything about it is small, and nothing is aligned."""
    images, teacher, out = folder / "images", folder / "teacher", folder / "built.h5"
    write_lesions(images, {"train": 6, "val": 2}, size_px=32)
    prompts = default_prompts(scan_folder(images).classes[FOLDER_TASK])
    shape = SmallSiglip(size_px=32, patch_px=8, width=32, layers=2, heads=2)
    new_siglip(shape, [text for texts in prompts.values() for text in texts], teacher)
    _must(["cache", "build", str(images), "-o", str(out), "--teacher", str(teacher), "--views", "4", "--device", "cpu"])
    return out


def merged_cache(folder: Path) -> Path:
    """Two caches with 1,000 classes (float16 logits) and embeddings, through the real `cache merge`: large objects."""
    generator = np.random.default_rng(0)
    identity = {
        "tasks": [{"name": FOLDER_TASK, "classes": [f"class {number:03}" for number in range(CLASSES)]}],
        "view_columns": list(COLUMNS), "teacher": {"weights": "00ff"}, "precision": "fp16",
    }  # fmt: skip
    parts = []
    for part, n_samples in enumerate((MERGED_SAMPLES // 2, MERGED_SAMPLES - MERGED_SAMPLES // 2)):
        parts.append(folder / f"part-{part}.h5")
        write_table(parts[-1], Manifest(identity, {"part": part}), _random_table(n_samples, generator))
    out = folder / "merged.h5"
    _must(["cache", "merge", *map(str, parts), "-o", str(out)])
    return out


def _random_table(n_samples: int, generator: np.random.Generator) -> Table:
    n_rows = n_samples * MERGED_VIEWS
    return Table(
        key=np.unique(generator.integers(0, 256, (n_samples, 16), dtype=np.uint8), axis=0),
        first_row=np.arange(0, n_rows + 1, MERGED_VIEWS).astype("<u8"),
        view=np.tile(np.arange(MERGED_VIEWS), n_samples).astype("<u2"),
        params=generator.random((n_rows, len(COLUMNS))).astype("<f4"),
        witness=generator.integers(0, 256, (n_rows, 12), dtype=np.uint8),
        logits={FOLDER_TASK: generator.normal(-10, 4, (n_rows, CLASSES)).astype("<f2")},
        features={"embedding": generator.normal(size=(n_rows, EMBEDDING_SIZE)).astype("<f2")},
        names=[f"mole/{number:05}.jpg" for number in range(n_samples)],
    )


def _must(words: list[str]) -> None:
    with redirect_stdout(sys.stderr):  # standard output is for the tables
        if run(words) != 0:
            raise RuntimeError(f"softlabel {' '.join(words)} failed")


def examine(path: Path, specimen: Specimen, outputs: tuple[Path, Path]) -> Verdict:
    """Ask the command line, the reader and training's start about one file."""
    for output in outputs:
        os.truncate(output, 0)
    exit_code = run(["cache", "verify", str(path)])
    sys.stdout.flush()
    printed, error = (output.read_text("utf-8", "replace").lstrip("\0") for output in outputs)
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
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=self._serve, args=(theirs, self._ours))
        self._process.start()
        theirs.close()

    def _serve(self, connection: Connection, ours: Connection) -> None:
        ours.close()
        for number, output in enumerate(self._outputs, start=1):
            os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        with suppress(EOFError):
            while True:
                path, name = connection.recv()
                connection.send(examine(path, self._specimens[name], self._outputs))

    def ask(self, path: Path, specimen: str) -> Verdict:
        """What the product says of a file that was this specimen."""
        self._ours.send((path, specimen))
        try:
            if self._ours.poll(HANG_S):
                verdict: Verdict = self._ours.recv()
                return verdict
            self._process.kill()
        except EOFError:
            pass
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


@contextmanager
def damaged(victim: Path, content: bytes, damage: Damage) -> Iterator[None]:
    """The file with this damage, and sound again after."""
    if damage.bit < 0:
        os.truncate(victim, damage.byte)
    else:
        _overwrite(victim, damage.byte, bytes([content[damage.byte] ^ 1 << damage.bit]))
    yield
    _overwrite(victim, damage.byte, content[damage.byte :] if damage.bit < 0 else content[damage.byte :][:1])


def _overwrite(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def is_told(verdict: Verdict, path: Path, specimen: Specimen, damage: Damage) -> bool:
    """Exit code 1 and one line that names file and reason; for a flip in rows or in a gap, the very place."""
    start, reason = f"Error: {path} is ", r"(damaged in \d+ blocks|not a sound cache): \S.*"
    lines = verdict.error.splitlines()
    if verdict.exit_code != 1 or verdict.printed or len(lines) != 1 or not lines[0].startswith(start):
        return False
    if not re.fullmatch(reason, lines[0].removeprefix(start)) or not lines[0].isprintable():
        return False
    if damage.bit < 0:
        return True
    entry, place = damage.byte, r"unused bytes (\d+)-(\d+)"
    if damage.where in specimen.row_bytes:
        entry = (damage.byte - specimen.spans[damage.where][0][0]) // specimen.row_bytes[damage.where]
        place = re.escape(damage.where) + r" rows (\d+)-(\d+)"
    elif damage.where != GAPS:
        return True
    found = re.search(place, lines[0])
    return found is not None and int(found[1]) <= entry <= int(found[2])


def draw_flips(specimens: dict[str, Specimen], flips: int, rng: random.Random) -> list[Damage]:
    """So many flips, spread evenly over the objects of all specimens; each object, header and gap gets at least one."""
    places = [(name, where) for name, specimen in specimens.items() for where in specimen.spans]
    share, damages = -(-flips // len(places)), list[Damage]()
    for name, where in places:
        spans = specimens[name].spans[where]
        n_bits = 8 * sum(stop - start for start, stop in spans)
        bits = {(rng.randrange(start, stop), rng.randrange(8)) for start, stop in spans}
        for number in rng.sample(range(n_bits), min(share, n_bits)):
            if len(bits) < share:
                bits.add((_byte(spans, number // 8), number % 8))
        damages += [Damage(name, where, byte, bit) for byte, bit in sorted(bits)]
    return damages


def _byte(spans: list[Span], number: int) -> int:
    """The offset in the file of the so-manieth byte of the spans."""
    for start, stop in spans:
        if number < stop - start:
            return start + number
        number -= stop - start
    raise IndexError(number)


def draw_cuts(specimens: dict[str, Specimen], cuts: int, rng: random.Random) -> list[Damage]:
    """Each kind of cut once for each specimen and object, then random lengths until there are so many."""
    damages = []
    for name, specimen in specimens.items():
        damages += [Damage(name, TO_NOTHING, 0), Damage(name, ONE_BYTE, len(specimen.content) - 1)]
        for spans in specimen.spans.values():
            start, stop = rng.choice(spans)
            damages.append(Damage(name, INSIDE, rng.randrange(start + 1, stop)))
    for number in range(max(cuts - len(damages), len(specimens))):
        name = list(specimens)[number % len(specimens)]
        damages.append(Damage(name, ANY_LENGTH, rng.randrange(len(specimens[name].content))))
    return damages


class Report:
    """Damages and what became of them, by place."""

    def __init__(self) -> None:
        self.damages: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.details: list[str] = []

    def add(self, damage: Damage, verdict: Verdict, told: bool) -> None:
        """Count one damage."""
        found = {
            "refused at opening": verdict.opening_refuses,
            "refused at training's start": verdict.training_refuses,
            "refused by verify": verdict.exit_code == 1,
            "undetected": verdict.exit_code == 0,
            "silently wrong": verdict.is_wrong,
            "ill told": verdict.exit_code != 0 and not told,
        }
        self.damages[damage.where] += 1
        self.counts.update({(damage.where, name): int(is_so) for name, is_so in found.items()})
        if off := [name for name in OFF if found[name]]:
            self.details.append(f"{damage}: {', '.join(off)} (exit {verdict.exit_code}): {verdict.error.strip()}")

    def line(self, places: list[str]) -> dict[str, int]:
        """Column -> number, summed over places."""
        counts = {name: sum(self.counts[place, name] for place in places) for name in COUNTS}
        return {"damages": sum(self.damages[place] for place in places), **counts}

    def to_table(self, title: str, damages: str, places: list[str]) -> str:
        """Markdown."""
        lines = {place: self.line([place]) for place in places} | {"**all**": self.line(places)}
        rows = [[title, damages, *COUNTS], ["---"] * (2 + len(COUNTS))]
        rows += [[place, *map(str, line.values())] for place, line in lines.items()]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def campaign(folder: Path, specimens: dict[str, Specimen], flips: int, cuts: int, seed: int) -> Report:
    """Damage copies of the specimens so many times, and ask after each."""
    rng, report, examiner = random.Random(seed), Report(), Examiner(folder, specimens)
    victims = {name: folder / f"{name}-victim.h5" for name in specimens}
    for name, victim in victims.items():
        victim.write_bytes(specimens[name].content)
        verdict = examiner.ask(victim, name)
        if (verdict.exit_code, verdict.training_refuses, verdict.is_wrong) != (0, False, False):
            raise RuntimeError(f"the sound {name} cache is refused: {verdict}")
    for damage in [*draw_flips(specimens, flips, rng), *draw_cuts(specimens, cuts, rng)]:
        specimen, victim = specimens[damage.specimen], victims[damage.specimen]
        with damaged(victim, specimen.content, damage):
            verdict = examiner.ask(victim, damage.specimen)
        report.add(damage, verdict, is_told(verdict, victim, specimen, damage))
    examiner.close()
    for name, victim in victims.items():
        if victim.read_bytes() != specimens[name].content:
            raise RuntimeError(f"{victim} was altered by somebody else")
    return report


def parse(words: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=760, help="in total; each object gets its share, at least one")
    parser.add_argument("--truncations", type=int, default=200, help="in total; each kind and object gets one at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="new folder to work in [a temporary one]")
    parser.add_argument("--json", type=Path, help="write the counts there, too")
    arguments = parser.parse_args(words)
    if arguments.flips < 1 or arguments.truncations < 1:
        parser.error(f"expected 1 or more, got --flips {arguments.flips} --truncations {arguments.truncations}")
    if arguments.folder is not None and arguments.folder.exists():
        parser.error(f"{arguments.folder} exists: choose another --folder, or delete it")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Run the campaign, print its tables; 1 if anything was undetected, silently wrong or ill told."""
    arguments = parse(words)
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        made = {"built": built_cache(folder), "merged": merged_cache(folder)}
        specimens = {name: dissect(path, name) for name, path in made.items()}
        report = campaign(folder, specimens, arguments.flips, arguments.truncations, arguments.seed)
    objects = list(dict.fromkeys(where for specimen in specimens.values() for where in specimen.spans))
    print(report.to_table("bits flipped in", "flips", objects))
    print("\n" + report.to_table("cut off", "truncations", list(CUTS)))
    sizes = ", ".join(f"{name} {len(specimen.content):,} bytes" for name, specimen in specimens.items())
    wall_s = time.perf_counter() - started
    print(f"\n{sum(report.damages.values())} damages in {wall_s:.0f} s, seed {arguments.seed}. Caches: {sizes}.")
    for detail in report.details[:20]:
        print(detail, file=sys.stderr)
    if arguments.json is not None:
        places = {place: report.line([place]) for place in [*objects, *CUTS]}
        result = {"seed": arguments.seed, "wall_s": wall_s, "places": places, "details": report.details}
        arguments.json.write_text(json.dumps(result))
    return int(bool(report.details))


if __name__ == "__main__":
    sys.exit(main())
