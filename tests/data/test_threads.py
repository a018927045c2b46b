"""Threads that load give batches in order, hand on what goes wrong, leave the model's threads alone, and end."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch

from data import threads as module
from data.threads import Threads, ahead, loading_threads, shared, single_threaded


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("softlabel-load")]


def slow_for_even(number: int) -> int:
    time.sleep(0.02 * (number % 2 == 0))
    return 10 * number


@pytest.mark.parametrize("n_threads", [1, 3])
def test_what_is_made_ahead_comes_in_order(n_threads: int) -> None:
    assert list(ahead(range(9), slow_for_even, n_threads)) == [10 * number for number in range(9)]
    assert ours() == []


def test_few_batches_are_made_ahead() -> None:
    made: list[int] = []
    loaded = ahead(range(100), lambda number: made.append(number), 2)
    next(loaded)
    time.sleep(0.1)
    assert len(made) <= 5
    loaded.close()
    assert ours() == []


def test_an_error_comes_where_its_batch_would_have_come() -> None:
    loaded = ahead([2, 1, 0, 3], lambda number: 6 // number, 1)
    assert [next(loaded), next(loaded)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(loaded)
    assert ours() == []


def test_the_rows_of_a_batch_are_shared_and_the_first_error_is_raised() -> None:
    done = set()
    with single_threaded(2) as pool:
        shared(pool, 2, lambda a, b: done.add((a, b)), range(20), range(20, 40))
        assert done == {(n, n + 20) for n in range(20)}
        with pytest.raises(ZeroDivisionError):
            shared(pool, 2, lambda a: 1 // a, [1, 2, 0])
    assert ours() == []


def test_threads_that_load_compute_on_one_core_and_the_model_on_as_many_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with single_threaded(2) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
            assert torch.get_num_threads() == 2
            later: list[int] = []
            thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
            thread.start()
            thread.join()
        assert torch.get_num_threads() == 2
        assert later == [2]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("usable", "computing", "device", "expected", "said"),
    [
        (1, 1, "cpu", Threads(0, False), "loaded between the steps"),
        (2, 1, "cpu", Threads(1, True), "loaded by 1 thread beside the steps"),
        (2, 2, "cpu", Threads(2, False), "loaded by 2 threads between the steps"),
        (16, 4, "cpu", Threads(8, True), "loaded by 8 threads beside the steps"),
        (16, 16, "cuda", Threads(8, True), "loaded by 8 threads beside the steps"),
    ],
)
def test_cores_that_the_model_leaves_idle_load_ahead_and_else_between_its_steps(
    usable: int, computing: int, device: str, expected: Threads, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(usable)), raising=False)
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: computing)
    assert loading_threads(device) == expected
    assert expected.to_text() == said
