"""How the ranks of a build share its rows: who computes which, in passes of one size, and what came of it.

Computes no row. Which rank has a row changes nothing in it. Run: torchrun --nproc-per-node 2 $(which softlabel) cache
build DATA -o t.h5
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.errors import BadFile
from data.samples import SampleSet
from pipeline.errors import OutOfMemory, SettingError
from pipeline.ranks import Ranks
from pipeline.teachers.teacher import Teacher
from pipeline.wanted import Wanted

Share = list[tuple[bytes, list[int]]]
"""Keys of samples, each with its views."""


def shares(wanted: Wanted, n_ranks: int) -> list[Share]:
    """What each rank computes: nearly as many rows each, in key order. A sample is whole, as it is decoded once."""
    found: list[Share] = [[] for _ in range(n_ranks)]
    total, before = sum(len(views) for _, views in wanted), 0
    for sample, views in wanted:
        middle = 2 * before + len(views)
        found[middle * n_ranks // (2 * total)].append((sample.key, views))
        before += len(views)
    return found


def of_share(share: Share, images: SampleSet) -> Wanted:
    """The same with this rank's own samples; SettingError where it does not see the images of the first one."""
    sample_of = {sample.key: sample for sample in images.samples}
    if n_missing := sum(key not in sample_of for key, _ in share):
        raise SettingError(
            f"this rank sees {len(sample_of):,} images, and {n_missing:,} of its share are not among them: let all "
            "machines see the same DATA"
        )
    return [(sample_of[key], views) for key, views in share]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one rank did, or all together."""

    n_computed: int = 0
    n_recomputed: int = 0
    """Rows that overflowed in half precision."""
    wall_s: float = 0.0
    gone: list[BadFile] = field(default_factory=list)
    """Files that went bad since they were checked."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Of the rows that were computed."""
    sealed: list[str] = field(default_factory=list)
    """Names of segments."""


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Sums; seconds of the slowest rank, the provenance of the first one that computed."""
    return Outcome(
        n_computed=sum(one.n_computed for one in outcomes), n_recomputed=sum(one.n_recomputed for one in outcomes),
        wall_s=max(one.wall_s for one in outcomes), gone=[file for one in outcomes for file in one.gone],
        provenance=next((one.provenance for one in outcomes if one.n_computed), outcomes[0].provenance),
        sealed=[name for one in outcomes[1:] for name in one.sealed],
    )  # fmt: skip


class FirstPass:
    """Lets all ranks go on after their first pass, or none: a batch that is too large for one is halved for all.

    Nothing has been sealed until then, and rows that are computed at different sizes differ in their last digits.
    """

    def __init__(self, ranks: Ranks, teacher: Teacher | None) -> None:
        self._ranks, self._teacher = ranks, teacher
        self._is_settled = ranks.is_alone

    def embed(self, pixels: Tensor) -> NDArray[np.float32]:
        """`Teacher.embed`; OutOfMemory, the first time, if any rank had too little."""
        assert self._teacher is not None
        if self._is_settled:
            return self._teacher.embed(pixels)
        try:
            embedding = self._teacher.embed(pixels)
        except OutOfMemory as error:
            self.settle(str(error))
            raise
        self.settle()
        return embedding

    def settle(self, problem: str = "") -> None:
        """Hear of the others, once; a rank that has no pass to do calls this, too."""
        if self._is_settled:
            return
        self._is_settled = True
        told = self._ranks.gather(problem)
        if any(told):
            raise OutOfMemory(next(f"rank {rank}: {one}" for rank, one in enumerate(told) if one))
