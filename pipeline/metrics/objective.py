"""What a student is worth to the course that the project serves: 10 x macro F1, less something for its bytes.

How much less is not public: whoever asks says it, as points or as points per megabyte.
Run: softlabel evaluate RUN DATA --objective course --size-factor 0.02/MB
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.errors import SettingError
from pipeline.metrics.bootstrap import Interval

OBJECTIVES = ("course",)
F1_POINTS = 10
"""What a macro F1 of 1 is worth (the assignment: score = 10 x macro F1 - model size factor)."""
_PER_MB = "/mb"
_FORMS = "points taken off, such as 0.35, or points per megabyte (1e6 bytes) of the exported file, such as 0.02/MB"


@dataclass(frozen=True)
class SizeFactor:
    """What is taken off for the size of the exported file."""

    points: float
    """Finite, at least 0."""
    is_per_mb: bool
    """Whether so many for each 1e6 bytes."""

    def of(self, n_bytes: int) -> float:
        """Points taken off for a file of this size."""
        return self.points * n_bytes / 1e6 if self.is_per_mb else self.points


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A student's score on one split as the course would have it."""

    name: str
    """Of OBJECTIVES."""
    size_factor: float
    """Points taken off."""
    n_bytes: int
    """Of the exported file."""
    macro_f1: float
    score: float
    """10 * macro_f1 - size_factor."""
    interval: Interval | None
    """That of the macro F1 on this scale; a file has no other size in a resample."""


def parsed_size_factor(objective: str | None, text: str | None) -> SizeFactor | None:
    """`0.35` or `0.02/MB`; None where no objective was asked for. SettingError for either without the other."""
    if objective is None:
        if text is not None:
            raise SettingError(
                f"--size-factor {text} is part of an objective: pass --objective {OBJECTIVES[0]} as well"
            )
        return None
    if objective not in OBJECTIVES:
        raise SettingError(f"objective must be {' or '.join(OBJECTIVES)}, got {objective!r}")
    if text is None:
        raise SettingError(
            f"--objective {objective} needs --size-factor, as the {objective}'s own is not public: {_FORMS}"
        )
    is_per_mb = text.lower().endswith(_PER_MB)
    number = text[: -len(_PER_MB)] if is_per_mb else text
    try:
        points = float(number)
    except ValueError:
        points = math.nan
    if not 0 <= points < math.inf:
        raise SettingError(f"--size-factor must be at least 0: {_FORMS}; got {text!r}")
    return SizeFactor(points, is_per_mb)


def objective_of(
    factor: SizeFactor, n_bytes: int, macro_f1: float, interval: Interval | None, name: str = OBJECTIVES[0]
) -> Objective:
    """The score of a macro F1 in [0, 1] and a file of so many bytes, with the interval that follows from macro F1's."""
    off = factor.of(n_bytes)
    of_score = Interval(F1_POINTS * interval.low - off, F1_POINTS * interval.high - off) if interval else None
    return Objective(
        name=name, size_factor=off, n_bytes=n_bytes, macro_f1=macro_f1, score=F1_POINTS * macro_f1 - off,
        interval=of_score,
    )  # fmt: skip
