"""Flip bits everywhere in real caches and cut them off, and count what `softlabel cache verify` does not notice.

Never mends a file by the product's own means. Run: OMP_NUM_THREADS=1 python benchmarks/damage_caches.py
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from reliability.examiner import Examiner, Verdict
from reliability.report import Report
from reliability.specimens import GAPS, Span, Specimen, built_cache, dissect, merged_cache

TO_NOTHING, ONE_BYTE, INSIDE, ANY_LENGTH = "to 0 bytes", "by 1 byte", "inside each object", "to a random length"
CUTS = (TO_NOTHING, ONE_BYTE, INSIDE, ANY_LENGTH)
COUNTS = (
    "refused at opening", "refused at training's start", "refused by verify", "undetected", "silently wrong",
    "ill told",
)  # fmt: skip
OFF = ("undetected", "silently wrong", "ill told")


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
    start, reason = f"Error: {path} is ", r"(damaged in \d+ blocks?|not a sound cache): \S.*"
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


def count(report: Report, damage: Damage, verdict: Verdict, told: bool) -> None:
    """One damage and what became of it."""
    found = {
        "damages": True,
        "refused at opening": verdict.opening_refuses,
        "refused at training's start": verdict.training_refuses,
        "refused by verify": verdict.exit_code == 1,
        "undetected": verdict.exit_code == 0,
        "silently wrong": verdict.is_wrong,
        "ill told": verdict.exit_code != 0 and not told,
    }
    for name, is_so in found.items():
        report.add(damage.where, name, is_so)
    if off := [name for name in OFF if found[name]]:
        report.details.append(f"{damage}: {', '.join(off)} (exit {verdict.exit_code}): {verdict.error.strip()}")


def campaign(folder: Path, specimens: dict[str, Specimen], flips: int, cuts: int, seed: int) -> Report:
    """Damage copies of the specimens so many times, and ask after each."""
    rng, report, examiner = random.Random(seed), Report("damages", *COUNTS), Examiner(folder, specimens)
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
        count(report, damage, verdict, is_told(verdict, victim, specimen, damage))
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
    print(report.to_table(["bits flipped in", "flips", *COUNTS], objects))
    print("\n" + report.to_table(["cut off", "truncations", *COUNTS], CUTS))
    sizes = ", ".join(f"{name} {len(specimen.content):,} bytes" for name, specimen in specimens.items())
    wall_s = time.perf_counter() - started
    print(f"\n{report.line(report.rows)['damages']} damages in {wall_s:.0f} s, seed {arguments.seed}. Caches: {sizes}.")
    places = {place: report.line([place]) for place in [*objects, *CUTS]}
    report.tell(arguments.json, {"seed": arguments.seed, "wall_s": wall_s, "places": places})
    return int(bool(report.details))


if __name__ == "__main__":
    sys.exit(main())
