"""Forward passes of equal size that cut across items: in turn or one ahead, the rows are the same."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from data.loaders import SampleViews
from data.samples import Sample
from pipeline.errors import OutOfMemory
from pipeline.passes import embed_in_passes, on_gpu
from pipeline.teachers.heads import OutputHead
from pipeline.teachers.teacher import LoadedModel, Teacher


class Counting(nn.Module):
    """Embeds a view as its first pixel and its place in the pass; notes who asked, and may fail."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.sizes, self.threads, self._fails_at = list[int](), list[int](), fails_at

    def forward(self, pixels: Tensor) -> Tensor:
        if len(self.sizes) == self._fails_at:
            raise RuntimeError("out of memory: no room for this pass")
        self.sizes.append(len(pixels))
        self.threads.append(threading.get_ident())
        return torch.stack([pixels[:, 0, 0, 0] * 255, torch.arange(len(pixels))], dim=1)


def teacher_of(tower: nn.Module) -> Teacher:
    model = LoadedModel(
        tower=tower, head=OutputHead(2), classes=("a", "b"), size_px=2, mean=(0.0,) * 3, std=(1.0,) * 3, identity={}
    )  # fmt: skip
    return Teacher(model, device="cpu", precision="fp32")


def items_of(sizes: Sequence[int]) -> Iterator[SampleViews]:
    """Items of so many views each; all views are numbered through in their pixels."""
    first = 0
    for number, size in enumerate(sizes):
        pixels = torch.arange(first, first + size, dtype=torch.uint8)[:, None, None, None].expand(size, 3, 2, 2)
        sample = Sample(bytes([number] * 16), "", "", "train", {})
        yield SampleViews(
            sample,
            np.arange(size, dtype=np.uint16),
            np.zeros((size, 1), np.float32),
            pixels,
            np.zeros((size, 12), "u1"),
        )
        first += size


@settings(max_examples=40, deadline=None, database=None)
@given(sizes=st.lists(st.integers(1, 7), max_size=9), batch_size=st.integers(1, 5))
def test_every_item_gets_its_rows_whether_passes_run_in_turn_or_ahead(sizes: list[int], batch_size: int) -> None:
    def run(ahead: bool) -> tuple[list[tuple[int, Any]], list[int], list[int]]:
        tower, seen = Counting(), list[int]()
        teacher = teacher_of(tower)
        passes = embed_in_passes(
            items_of(sizes), teacher, batch_size, lambda _, rows: seen.append(len(rows)),
            ahead=teacher if ahead else None,
        )  # fmt: skip
        return [(item.sample.key[0], rows.tolist()) for item, rows in passes], tower.sizes, seen

    found = [run(ahead) for ahead in (False, True)]
    assert set(found[0][1]) <= {batch_size}
    assert sum(found[0][2]) == sum(sizes)
    assert found[0] == found[1]
    rows = [row for _, embedding in found[0][0] for row in embedding]
    assert [number for number, _ in found[0][0]] == list(range(len(sizes)))
    np.testing.assert_allclose(rows, [[at, at % batch_size] for at in range(sum(sizes))], atol=1e-4)


def test_the_first_pass_is_alone_and_the_next_runs_while_rows_are_taken() -> None:
    tower = Counting()
    begun, teacher = [], teacher_of(tower)
    for _ in embed_in_passes(items_of([2] * 5), teacher, 2, lambda *_: None, ahead=teacher):
        begun.append(len(tower.sizes))
    assert begun[0] == 1
    assert len(tower.sizes) == 5
    assert tower.threads[0] == threading.get_ident()
    assert threading.get_ident() not in tower.threads[1:]


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_a_pass_that_fails_ahead_fails_for_who_waits_for_its_rows(fails_at: int) -> None:
    teacher = teacher_of(Counting(fails_at))
    passes = embed_in_passes(items_of([2] * 5), teacher, 2, lambda *_: None, ahead=teacher)
    assert [item.sample.key[0] for item, _ in itertools.islice(passes, fails_at)] == list(range(fails_at))
    with pytest.raises(OutOfMemory, match="2 views of 2 px"):
        next(passes)


def test_a_teacher_on_the_cpu_is_asked_in_turn() -> None:
    """Its passes fill the cores, and a second thread would bring threads of its own."""
    assert on_gpu(teacher_of(Counting())) is None
