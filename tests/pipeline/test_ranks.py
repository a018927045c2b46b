"""What ranks are told of their place, how they share, and torchrun itself: one launch with a rank that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import CacheReader
from data.samples import Sample
from pipeline.commands.torchrun import place
from pipeline.errors import OutOfMemory, SettingError
from pipeline.ranks import ALONE, Place, Ranks
from pipeline.sharing import FirstPass, Outcome, of_share, shares, together

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "5",
    "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip


class Others(Ranks):
    """A rank whose others say what they are told to."""

    def __init__(self, *said: object) -> None:
        super().__init__(Place(world_size=1 + len(said), local_world_size=1 + len(said)))
        self.said = said

    def gather(self, value: object) -> list[object]:  # type: ignore[override]
        """The own value first."""
        return [value, *self.said]


def test_a_process_knows_its_place_from_torchrun_and_from_nobody_else() -> None:
    assert place(TORCHRUN) == Place(
        rank=3, world_size=4, local_rank=1, local_world_size=2, restart_count=5, launch=place(TORCHRUN).launch
    )
    assert place(TORCHRUN).launch != place({**TORCHRUN, "TORCHELASTIC_RUN_ID": "another"}).launch
    # Job schedulers set some of these, too.
    assert place({name: word for name, word in TORCHRUN.items() if name != "TORCHELASTIC_RUN_ID"}) == Place()


@given(n=st.integers(0, 50), world_size=st.integers(1, 9))
def test_parts_are_in_order_whole_and_nearly_equal(n: int, world_size: int) -> None:
    parts = [Ranks(Place(rank=rank, world_size=world_size)).share(n) for rank in range(world_size)]
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    sizes = [len(range(n)[part]) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(n_views=st.lists(st.integers(1, 9), max_size=40), n_ranks=st.integers(1, 9))
def test_shares_of_a_build_are_balanced_by_rows(n_views: list[int], n_ranks: int) -> None:
    samples = [Sample(bytes([i] * 16), str(i), str(i), "train", {}) for i in range(len(n_views))]
    wanted = [(sample, list(range(n))) for sample, n in zip(samples, n_views, strict=True)]
    found = shares(wanted, n_ranks)
    assert len(found) == n_ranks
    assert [pair for share in found for pair in share] == [(sample.key, views) for sample, views in wanted]
    rows = [sum(len(views) for _, views in share) for share in found]
    assert max(rows) - sum(n_views) / n_ranks <= max(n_views, default=0)


def test_a_rank_that_sees_other_images_says_so() -> None:
    class Images:
        samples = (Sample(b"a" * 16, "a", "a", "train", {}),)

    assert [views for _, views in of_share([(b"a" * 16, [0, 1])], Images())] == [[0, 1]]  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="1 of its share are not among them"):
        of_share([(b"b" * 16, [0])], Images())  # type: ignore[arg-type]


class Small:
    """A teacher on a device with room for so many views."""

    def __init__(self, room: int) -> None:
        self.room = room

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Too many are too many."""
        if len(pixels) > self.room:
            raise OutOfMemory(f"{len(pixels)} views")
        return pixels


def test_a_batch_that_is_too_large_for_one_rank_is_too_large_for_all() -> None:
    views = np.zeros((4, 2), np.float32)
    fits = FirstPass(Others(""), Small(4))  # type: ignore[arg-type]
    assert fits.embed(views) is views  # type: ignore[arg-type]
    with pytest.raises(OutOfMemory, match="rank 1: 4 views"):
        FirstPass(Others("4 views"), Small(4)).embed(views)  # type: ignore[arg-type]
    with pytest.raises(OutOfMemory, match="rank 0: 4 views"):
        FirstPass(Others(""), Small(3)).embed(views)  # type: ignore[arg-type]
    with pytest.raises(OutOfMemory, match="rank 1: 4 views"):
        FirstPass(Others("4 views"), None).settle()
    FirstPass(ALONE, None).settle()


def test_the_outcome_of_all_has_sums_and_what_the_first_rank_with_rows_recorded() -> None:
    idle = Outcome(provenance={"at": 0}, sealed=["own"])
    busy = [Outcome(n_computed=n, n_recomputed=1, wall_s=n, provenance={"at": n}, sealed=[f"{n}.h5"]) for n in (3, 5)]
    assert together([idle, *busy]) == Outcome(
        n_computed=8, n_recomputed=2, wall_s=5, provenance={"at": 3}, sealed=["3.h5", "5.h5"]
    )
    assert together([idle]).provenance == {"at": 0}


def test_a_rank_has_its_share_of_the_cores_for_loading() -> None:
    assert ALONE.workers(8) == 8
    assert Ranks(Place(world_size=1000, local_world_size=1000)).workers(8) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills by a signal")
def test_torchrun_restarts_a_rank_that_was_killed_and_the_file_comes_out_whole(
    tiny_data: Path, tiny_teacher: Path, tiny_cache: Path, tmp_path: Path, clean_environment: dict[str, str],
    rows_of: Callable[[Path], dict[tuple[str, int], bytes]],
) -> None:  # fmt: skip
    words = [
        "cache", "build", tiny_data, "-o", tmp_path / "t.h5", "--teacher", tiny_teacher, "--views", 3, "--precision",
        "fp32", "--batch-size", 4, "--device", "cpu", "--workers", 0,
    ]  # fmt: skip
    script = Path(__file__).with_name("killed_rank.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", 1]
    done = subprocess.run(
        list(map(str, [*launch, script, *words])), env=clean_environment, capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr, "it was killed"
    assert done.stdout.count("120 views of 60 images") == 1
    assert rows_of(tmp_path / "t.h5") == rows_of(tiny_cache)
    assert CacheReader(tmp_path / "t.h5").content_id == CacheReader(tiny_cache).content_id
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]
