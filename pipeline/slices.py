"""One job of an array: every N-th image of DATA, into a file of its own beside the others.

Knows neither teachers nor caches, and loads no numpy. Run: softlabel cache build DATA -o t.h5 --slice 3/16
"""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SettingError

if TYPE_CHECKING:
    from data.samples import SampleSet


log = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<stem>.+)\.(?P<number>[0-9]{1,6})-of-(?P<count>[0-9]{1,6})(?P<suffix>\.[^.]+|)")
_N_NAMED = 3
"""Files that a message lists."""


@dataclass(frozen=True)
class Slice:
    """The images whose rank, by content key, is `number` - 1 modulo `count`."""

    number: int
    """1 to `count`."""
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise SettingError(f"slice {self.number}/{self.count}: expected I/N with I in 1..N, such as 1/16")

    @classmethod
    def parse(cls, text: str) -> Slice:
        """What `str` gives; SettingError for anything else."""
        if not (found := re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)):
            raise SettingError(f"slice {text!r}: expected I/N with I in 1..N, such as 1/16")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, images: SampleSet) -> SampleSet:
        """These images alone, with the classes of all; which ones depends on all of them, and on nothing else."""
        keys = set(sorted({sample.key for sample in images.samples})[self.number - 1 :: self.count])
        return dataclasses.replace(images, samples=tuple(sample for sample in images.samples if sample.key in keys))

    def file(self, out: str | Path) -> Path:
        """The file of this slice beside `out`: t.h5 -> t.03-of-16.h5, so that names sort."""
        out = Path(out)
        return out.with_name(f"{out.stem}.{self.number:0{len(str(self.count))}}-of-{self.count}{out.suffix}")

    @classmethod
    def named(cls, file: Path) -> tuple[Slice, Path] | None:
        """(slice, output) of a file that `file` names; None for any other name."""
        found = _NAME.fullmatch(file.name)
        if not found or not 1 <= int(found["number"]) <= int(found["count"]):
            return None
        part, out = cls(int(found["number"]), int(found["count"])), file.with_name(found["stem"] + found["suffix"])
        return (part, out) if part.file(out) == file else None

    def every_file(self, out: str | Path) -> str:
        """A pattern for a shell, of the files of all slices."""
        out = Path(out)
        folder = "" if out.parent == Path() else f"{out.parent}/"
        return f"{shlex.quote(folder + out.stem)}.*{shlex.quote(f'-of-{self.count}{out.suffix}')}"


def tell_of_missing_slices(files: Sequence[Path]) -> None:
    """Warn of slices that are not among these files, some of which are named as slices."""
    numbers: dict[tuple[Path, int], set[int]] = {}
    for part, out in filter(None, map(Slice.named, files)):
        numbers.setdefault((out, part.count), set()).add(part.number)
    lacking = [
        (out, count, number)
        for (out, count), there in numbers.items()
        for number in range(1, count + 1)
        if number not in there
    ]
    if not lacking:
        return
    named = [str(Slice(number, count).file(out)) for out, count, number in lacking[:_N_NAMED]]
    more = f" and {len(lacking) - len(named):,} more" if len(lacking) > len(named) else ""
    are = "is" if len(lacking) == 1 else "are"
    log.warning("%s%s %s not among them (a slice without images has no file)", ", ".join(named), more, are)
