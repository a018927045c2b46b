"""The DataLoaders of both stages: decoded once, rendered per image, handed over as uint8.

Workers are spawned (never forked: no inherited file handles or locks), decide nothing and draw no random number:
every item says which sample and which views it is. A bad image travels as a value, so that a night's run can list
all of them at its end. B batch, V views of a sample, S pixels.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.errors import BadImage, UnreadableImage
from data.pixels.source import PixelSource, one_by_one
from data.reading import read_sample
from data.samples import Sample
from data.threads import ahead, loading_threads, shared, single_threaded
from data.view_batches import ViewItem, targets_of
from data.views import ViewPolicy, draw, render, witness


@dataclass(frozen=True)
class SampleViews:
    """Some views of one sample, rendered: or the reason why they are not."""

    sample: Sample
    view: NDArray[np.uint16]
    """View indices, uint16 [V], ascending."""
    params: NDArray[np.float32]
    """Drawn numbers, float32 [V, P]."""
    pixels: Tensor
    """uint8 [V, 3, S, S]."""
    witness: NDArray[np.uint8]
    """Quadrant means, uint8 [V, 12]."""
    error: str = ""
    """Why the file is no image or could not be read, without its path."""
    unreadable: bool = False
    """Whether the error is about reading the file, not about the image in it."""


class TeacherViews(Dataset[SampleViews]):
    """Stage one: item i = the wanted views of sample i at the teacher's size, its file decoded once."""

    def __init__(
        self, wanted: Sequence[tuple[Sample, Sequence[int]]], policy: ViewPolicy, seed: int, size_px: int
    ) -> None:
        self._wanted, self._policy, self._seed, self._size_px = wanted, policy, seed, size_px

    def __len__(self) -> int:
        return len(self._wanted)

    def __getitem__(self, index: int) -> SampleViews:
        sample, views = self._wanted[index]
        params = np.stack([draw(self._policy, sample.key, view, self._seed) for view in views])
        try:
            image = read_sample(sample)
        except BadImage as error:
            nothing = torch.empty(0, 3, self._size_px, self._size_px, dtype=torch.uint8)
            return SampleViews(
                sample, np.array(views, np.uint16), params, nothing, np.empty((0, 12), np.uint8),
                error.reason, isinstance(error, UnreadableImage),
            )  # fmt: skip
        pixels = torch.stack([render(image, row, self._size_px, self._policy.geometry) for row in params])
        witnesses = np.stack([witness(view) for view in pixels])
        return SampleViews(sample, np.array(views, np.uint16), params, pixels, witnesses)


class StudentViews(Dataset[tuple[Tensor, int]]):
    """Stage two in a worker: the sampler gives whole batches of ViewItems instead of indices."""

    def __init__(self, source: PixelSource) -> None:
        self._source = source

    def __getitems__(self, items: Sequence[ViewItem]) -> tuple[Tensor, Tensor] | BadImage:
        """A whole batch; a bad image comes back as a value, since an exception would arrive wrapped in a traceback."""
        return _made(self._source, items)


def _made(
    source: PixelSource, items: Sequence[ViewItem], each: Callable[..., None] = one_by_one, *, pinned: bool = False
) -> tuple[Tensor, Tensor] | BadImage:
    try:
        return source.batch(items, each, pinned=pinned), torch.from_numpy(targets_of(items))
    except BadImage as error:
        return error.with_traceback(None)  # whose frames would hang on to the batch


class _Batches:
    """A batch sampler whose batches are set by the caller before each pass over the loader."""

    def __init__(self) -> None:
        self.batches: Sequence[Sequence[ViewItem]] = ()

    def __iter__(self) -> Iterator[list[ViewItem]]:
        return (list(batch) for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class StudentLoader:
    """Batches of ViewItems -> (uint8 [B, 3, S, S], int64 targets [B]), by workers that are kept between passes, or by
    threads of this process that are not.

    `source` is where pixels come from, by default decoded and rendered each time. `device` is where the model is: on
    CUDA the pixels are pinned.
    """

    def __init__(
        self, size_px: int, geometry: str, workers: int, *, source: PixelSource | None = None, device: str = "cpu"
    ) -> None:
        self._source = source or PixelSource(size_px, geometry)
        self._pinned, self._device = device == "cuda", device
        self._sampler, self._loader = _Batches(), None
        if workers:
            self._loader = _data_loader(
                StudentViews(self._source), workers, batch_sampler=self._sampler, collate_fn=_as_it_is,
                pin_memory=self._pinned,
            )  # fmt: skip

    def __call__(self, batches: Sequence[Sequence[ViewItem]]) -> Generator[tuple[Tensor, Tensor]]:
        """One pass over the batches, in order; BadImage where a file cannot be read any more. Close it if you leave it
        early: a thread may be loading."""
        loaded = self._by_threads(batches) if self._loader is None else self._by_workers(self._loader, batches)
        with contextlib.closing(loaded):
            for batch in loaded:
                if isinstance(batch, BadImage):
                    raise BadImage(str(batch))
                yield batch

    def _by_workers(self, loader: DataLoader[Any], batches: Sequence[Sequence[ViewItem]]) -> Generator[Any]:
        self._sampler.batches = batches
        with starting_workers():
            iterator = iter(loader)
        yield from iterator

    def _by_threads(self, batches: Sequence[Sequence[ViewItem]]) -> Generator[Any]:
        threads = loading_threads(self._device)
        make = partial(_made, self._source, pinned=self._pinned)
        if self._device == "cpu" and self._source.stand(batches):
            # Reading them takes a hundredth of a step: less than two threads lose that wait for each other.
            yield from map(make, batches)
        elif threads.ahead and len(batches) > 1:
            yield from ahead(batches, make, threads.n)
        elif threads.n:
            with single_threaded(threads.n) as pool:
                each = partial(shared, pool, threads.n)
                yield from (make(batch, each) for batch in batches)
        else:
            yield from map(make, batches)


def _as_it_is(batch: Any) -> Any:
    return batch


def teacher_loader(dataset: TeacherViews, workers: int) -> Iterator[SampleViews]:
    """The items of stage one in order, each as soon as a worker has it."""
    loader = _data_loader(dataset, workers, batch_size=None)
    with starting_workers():
        iterator = iter(loader)
    yield from iterator


def default_workers(device: str) -> int:
    """Loader processes: none beside a CPU model, whose threads fill the cores; else all cores but one, at most 8."""
    return 0 if device == "cpu" else min(8, max(0, (os.cpu_count() or 1) - 1))


def _data_loader(dataset: Dataset[Any], workers: int, **options: Any) -> DataLoader[Any]:
    if workers:
        options |= {"multiprocessing_context": "spawn", "persistent_workers": True, "prefetch_factor": 2}
    with starting_workers():
        # Starting a pass draws a number, with kept workers the first pass alone: from this generator, so that dropout
        # after a resume, or with other workers, is as it was.
        generator = torch.Generator()
        return DataLoader(dataset, num_workers=workers, worker_init_fn=_start_worker, generator=generator, **options)


def _start_worker(worker_id: int) -> None:
    # Ctrl-C reaches the whole process group; only the main process may answer it, or every worker prints a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # torch's own watchdog looks for the parent only from here on: one that was killed before, while this process was
    # importing, it would wait for for ever.
    threading.Thread(target=end_with_parent, daemon=True).start()
    # The thread that hands tensors over may be inside torch when the interpreter is taken down around it: C++ then ends
    # the process with "terminate called without an active exception" (seen after Ctrl-C, below the line that goes on).
    atexit.register(os._exit, 0)


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """A Ctrl-C waits until the children have started, and never reaches them: what is blocked here stays so in them."""
    with warnings.catch_warnings():
        # More workers than cores is a user's explicit choice here; the default never does it.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        if not hasattr(signal, "pthread_sigmask"):
            yield
            return
        resource_tracker.ensure_running()  # started by the first child instead, it would unblock the signal
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
