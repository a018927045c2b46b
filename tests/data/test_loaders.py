"""The loaders of both stages: how many processes work must not show in what comes out."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data import loaders
from data.errors import BadImage
from data.loaders import SampleViews, StudentLoader, TeacherViews, default_workers, teacher_loader
from data.reading import read_sample
from data.samples import Sample, content_key
from data.view_batches import ViewItem
from data.views import ViewPolicy, draw, render, witness

SIZE_PX = 16
SEED = 5
POLICY = ViewPolicy()


def write_sample(path: Path, number: int) -> Sample:
    """An image of noise of its own shape."""
    rng = np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)).save(path)
    return Sample(content_key(path.read_bytes()), str(path), path.name, "train", {"class": "mel"})


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Five good images; the file of number 3 changed after it was hashed."""
    made = [write_sample(tmp_path / f"{number}.png", number) for number in range(5)]
    write_sample(tmp_path / "3.png", 99)
    return made


def wanted(samples: Sequence[Sample]) -> TeacherViews:
    return TeacherViews([(sample, range(i % 3 + 1)) for i, sample in enumerate(samples)], POLICY, SEED, SIZE_PX)


def items_of(sample: Sample, n_views: int, first_target: int) -> list[ViewItem]:
    return [ViewItem(sample, draw(POLICY, sample.key, view, SEED), first_target + view) for view in range(n_views)]


def batches_of(samples: Sequence[Sample]) -> list[list[ViewItem]]:
    """Batches of 3, views of different samples mixed, the last one short."""
    items = [item for i, sample in enumerate(samples) for item in items_of(sample, 2, 10 * i)]
    items = items[::2] + items[1::2]
    return [items[start : start + 3] for start in range(0, len(items), 3)]


def expected_pixels(item: ViewItem) -> Tensor:
    return render(read_sample(item.sample), item.params, SIZE_PX, "warp")


def assert_same(found: SampleViews, expected: SampleViews) -> None:
    assert found.sample == expected.sample
    assert found.error == expected.error
    for name in ("view", "params", "witness"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert torch.equal(found.pixels, expected.pixels)
    assert found.pixels.dtype == torch.uint8


def worker_ids() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


def test_an_item_of_stage_one_holds_the_wanted_views(samples: list[Sample]) -> None:
    found = wanted(samples)[2]
    assert found.view.tolist() == [0, 1, 2]
    assert found.view.dtype == np.uint16
    assert found.error == ""
    image = read_sample(samples[2])
    for view in range(3):
        row = draw(POLICY, samples[2].key, view, SEED)
        np.testing.assert_array_equal(found.params[view], row)
        assert torch.equal(found.pixels[view], render(image, row, SIZE_PX))
        np.testing.assert_array_equal(found.witness[view], witness(found.pixels[view]))


def test_a_bad_image_of_stage_one_is_an_item_with_its_reason(samples: list[Sample]) -> None:
    found = wanted(samples)[3]
    assert found.error == "the file changed while it was in use"
    assert found.pixels.shape == (0, 3, SIZE_PX, SIZE_PX)
    assert found.witness.shape == (0, 12)
    assert found.view.tolist() == [0]


@pytest.mark.parametrize("workers", [0, 1])
def test_stage_one_gives_the_same_items_in_order_for_any_number_of_workers(samples: list[Sample], workers: int) -> None:
    before = worker_ids()
    expected = [wanted(samples)[i] for i in range(len(samples))]
    found = list(teacher_loader(wanted(samples), workers))
    assert [bool(item.error) for item in found] == [False, False, False, True, False]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert worker_ids() == before, "the workers of a finished pass are gone"


@pytest.mark.parametrize("workers", [0, 2])
def test_stage_two_keeps_batches_targets_and_workers_over_passes(samples: list[Sample], workers: int) -> None:
    good = [sample for sample in samples if sample != samples[3]]
    batches, before = batches_of(good), worker_ids()
    load = StudentLoader(SIZE_PX, "warp", workers)
    started, random_numbers = [], torch.get_rng_state()
    for this_pass in (batches, batches[::-1], [[batches[0][1]]]):
        found = list(load(this_pass))
        assert len(found) == len(this_pass)
        for (pixels, targets), batch in zip(found, this_pass, strict=True):
            assert targets.tolist() == [item.target for item in batch]
            assert pixels.dtype == torch.uint8
            assert torch.equal(pixels, torch.stack([expected_pixels(item) for item in batch]))
        started.append(worker_ids() - before)
    assert len(started[0]) == workers
    assert started == [started[0]] * 3
    # Kept workers would draw in their first pass alone: dropout after a resume would be another.
    assert torch.equal(torch.get_rng_state(), random_numbers)

    # A file that changed ends a pass with one line, and the loader stays usable.
    reasons = []
    try:  # pytest.raises would keep this frame, and with it the workers
        list(load([*batches, items_of(samples[3], 1, 0)]))
    except BadImage as error:
        reasons.append(str(error))
    assert reasons == [f"{samples[3].path}: the file changed while it was in use"]
    assert [targets.tolist() for _, targets in load(batches)] == [[item.target for item in batch] for batch in batches]


def test_a_pass_that_a_bad_image_ended_leaves_nothing_behind(samples: list[Sample]) -> None:
    """An error that hangs on to the frame which raised it keeps the workers until the garbage collector comes by:
    they are then torn down in an order that waits five seconds for each."""
    load, left = StudentLoader(SIZE_PX, "warp", 0), []
    gc.disable()
    try:
        list(load([items_of(samples[3], 1, 0)]))
    except BadImage as error:
        left.append(weakref.ref(error))
    finally:
        gc.enable()
    assert len(left) == 1
    assert left[0]() is None


def test_stage_two_renders_the_geometry_it_was_given(samples: list[Sample]) -> None:
    item = items_of(samples[0], 1, 7)[0]
    ((pixels, targets),) = StudentLoader(SIZE_PX, "pad", 0)([[item]])
    assert targets.tolist() == [7]
    assert torch.equal(pixels[0], render(read_sample(samples[0]), item.params, SIZE_PX, "pad"))
    assert not torch.equal(pixels[0], expected_pixels(item))


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be blocked here")
def test_ctrl_c_while_workers_start_comes_after_and_is_not_lost() -> None:
    steps = list[str]()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without it

    def start() -> None:
        with loaders.starting_workers():
            signal.raise_signal(signal.SIGINT)
            steps.append("started")
        steps.append("not interrupted")

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps == ["started"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_no_workers_stand_beside_a_model_on_the_cpu() -> None:
    assert default_workers("cpu") == 0
    assert 0 <= default_workers("cuda") <= 8


# Starts a loader, and is killed as soon as its worker is there, long before that has imported torch.
KILLED_WHILE_A_WORKER_STARTS = """
import multiprocessing, os, signal, sys, threading, time
from data.loaders import StudentLoader

def kill():
    while not multiprocessing.active_children():
        time.sleep(0.01)
    sys.stdout.write(str(multiprocessing.active_children()[0].pid))
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill).start()
list(StudentLoader(32, "warp", 1)([[]]))
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks the process up in /proc")
def test_a_worker_ends_after_its_parent_was_killed_while_it_started() -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_A_WORKER_STARTS], stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    status, until_s = Path(f"/proc/{killed.stdout}/stat"), time.monotonic() + 60
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < until_s, "the worker is still there"
        time.sleep(0.2)


# What a loader process looks like when it ends early: a thread of it is handing tensors over.
ENDS_WHILE_TENSORS_ARE_HANDED_OVER = """
import threading, time
import torch
from data.loaders import _start_worker

def hand_over():
    while True:
        torch.zeros(60, 3, 32, 32).untyped_storage()._share_fd_cpu_()

_start_worker(0)
threading.Thread(target=hand_over, daemon=True).start()
time.sleep(0.1)
"""


def test_a_worker_that_ends_while_it_hands_tensors_over_says_nothing() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDS_WHILE_TENSORS_ARE_HANDED_OVER], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
