"""How a folder of images is to be read. Imports nothing, so that a command line can make it at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """How a folder becomes samples."""

    split_file: Path | None = None
    """Where the split of an unsplit folder stands; None is `splits.csv` in it. Made at the first scan, then read."""
    allow_duplicates: bool = False
    """Accept the same bytes under two labels or in two splits."""
    remember_split: bool = True
    """Save a split that is made now; False for commands that only ask, which make the same one in memory."""
    skip_bad_images: bool = False
    """Leave out files that are empty or no whole image, with a notice, instead of stopping."""
    collect_bad_files: bool = False
    """Hand over those without bytes as `SampleSet.bad`, for callers that tell all bad files at once."""
    memo: Path | None = None
    """Where hashes are remembered (`data.hashes`); None hashes every file anew."""
