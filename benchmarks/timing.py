"""What the speed benchmarks have in common: contestants in turns, ratios with an interval, tables for docs.

Measures nothing by itself. A machine slows down and speeds up within minutes: only what ran in the same round is
compared, in an order that is shuffled anew in each round.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

from pipeline.machine import this_machine


@dataclass(frozen=True)
class Estimate:
    """A median over rounds, with its bootstrapped 95 % interval."""

    median: float
    low: float
    high: float
    n_rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def interleaved(
    contestants: Mapping[str, Callable[[], float]], rounds: int, *, tell: Callable[[str], None] = print
) -> dict[str, list[float]]:
    """What each contestant returned in each round, such as seconds."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    order = random.Random(0)
    for number in range(rounds):
        for name in order.sample(list(contestants), len(contestants)):
            found[name].append(contestants[name]())
        tell(f"round {number + 1}: " + ", ".join(f"{name} {values[-1]:.4g}" for name, values in found.items()))
    return found


def estimate(values: Sequence[float]) -> Estimate:
    """The median of some measurements."""
    median = float(np.median(values))
    if len(set(values)) < 2:
        return Estimate(median, median, median, len(values))
    interval = bootstrap((np.array(values),), np.median, method="percentile", rng=0).confidence_interval
    return Estimate(median, float(interval.low), float(interval.high), len(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """The median of the ratios of each round."""
    return estimate([one / other for one, other in zip(ours, theirs, strict=True)])


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table for docs/performance.md."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine_line() -> str:
    """The machine, and whether somebody else uses it: no figure is worth much without."""
    machine = this_machine()
    load = "" if machine.load is None else f", load {machine.load:.2f}"
    return f"{machine.cpu}, {machine.n_usable} of {machine.n_cores} cores{load}"
