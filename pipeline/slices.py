"""One job of an array: every N-th image of DATA, into a file of its own beside the others.

Knows neither teachers nor caches, and loads no numpy. Run: softlabel cache build DATA -o t.h5 --slice 3/16
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SettingError

if TYPE_CHECKING:
    from data.samples import SampleSet


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

    def every_file(self, out: str | Path) -> str:
        """A pattern for a shell, of the files of all slices."""
        out = Path(out)
        folder = "" if out.parent == Path() else f"{out.parent}/"
        return f"{shlex.quote(folder + out.stem)}.*{shlex.quote(f'-of-{self.count}{out.suffix}')}"
