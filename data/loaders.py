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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.decode import decode, read_bytes
from data.errors import BadImage, UnreadableImage
from data.samples import Sample, content_key
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


def read_encoded(sample: Sample) -> bytes:
    """The bytes of a sample's file; UnreadableImage if the file is gone or not the one hashed."""
    encoded = read_bytes(sample.path)
    if content_key(encoded) != sample.key:
        raise UnreadableImage("the file changed while it was in use", sample.path)
    return encoded


def read_sample(sample: Sample) -> Tensor:
    """The decoded image of a sample, uint8 [3, H, W]; the errors of `read_encoded`, and BadImage."""
    return decode(read_encoded(sample), sample.path)


def is_decodable(sample: Sample) -> bool:
    """Whether the file holds an image; decodes it. UnreadableImage where the file cannot be read."""
    try:
        read_sample(sample)
    except UnreadableImage:
        raise
    except BadImage:
        return False
    return True


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


@dataclass(frozen=True)
class ViewItem:
    """What stage two asks of the loader: one stored row of one sample."""

    sample: Sample
    params: NDArray[np.float32]
    target: int
    """The caller's own number of this item, handed back with the pixels."""


class ViewMemory:
    """Rendered views that are shown again, up to so many bytes: the first ones stay.

    Known by content and numbers, so that several runs of a process share them; those of another size or geometry are
    forgotten as soon as new ones come.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes, self._used_bytes = size_bytes, 0
        self._kind: tuple[int, str] | None = None
        self._views: dict[tuple[bytes, bytes], Tensor] = {}

    def view(self, item: ViewItem, size_px: int, geometry: str) -> Tensor:
        """The view of an item, uint8 [3, S, S], rendered where it is not remembered."""
        if self._kind != (size_px, geometry):
            self._kind, self._used_bytes = (size_px, geometry), 0
            self._views.clear()
        which = (item.sample.key, item.params.tobytes())
        view = self._views.get(which)
        if view is None:
            view = render(read_sample(item.sample), item.params, size_px, geometry)
            if self._used_bytes + view.nbytes <= self._size_bytes:
                self._used_bytes += view.nbytes
                self._views[which] = view.contiguous()
        return view


class StudentViews(Dataset[tuple[Tensor, int]]):
    """Stage two: the sampler gives ViewItems instead of indices; an item is (uint8 [3, S, S], target)."""

    def __init__(self, size_px: int, geometry: str, memory: ViewMemory | None = None) -> None:
        self._size_px, self._geometry, self._memory = size_px, geometry, memory or ViewMemory(0)

    def __getitem__(self, item: ViewItem) -> tuple[Tensor, int]:
        return self._memory.view(item, self._size_px, self._geometry), item.target

    def __getitems__(self, items: Sequence[ViewItem]) -> tuple[Tensor, Tensor] | BadImage:
        """A whole batch; a bad image comes back as a value, since an exception would arrive wrapped in a traceback."""
        try:
            pixels, targets = zip(*(self[item] for item in items), strict=True)
        except BadImage as error:
            return error
        return torch.stack(pixels), torch.tensor(targets)


class _Batches:
    """A batch sampler whose batches are set by the caller before each pass over the loader."""

    def __init__(self) -> None:
        self.batches: Sequence[Sequence[ViewItem]] = ()

    def __iter__(self) -> Iterator[list[ViewItem]]:
        return (list(batch) for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class StudentLoader:
    """Batches of ViewItems -> (uint8 [B, 3, S, S], int64 targets [B]), workers kept between passes.

    Without workers the views in `memory` are not rendered again; workers would each keep their own.
    """

    def __init__(self, size_px: int, geometry: str, workers: int, memory: ViewMemory | None = None) -> None:
        self._sampler = _Batches()
        views = StudentViews(size_px, geometry, None if workers else memory)
        self._loader = _data_loader(views, workers, batch_sampler=self._sampler, collate_fn=_as_it_is)

    def __call__(self, batches: Sequence[Sequence[ViewItem]]) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the batches, in order; BadImage where a file cannot be read any more."""
        self._sampler.batches = batches
        with starting_workers():
            iterator = iter(self._loader)
        for batch in iterator:
            if isinstance(batch, BadImage):
                raise BadImage(str(batch))
            yield batch


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
