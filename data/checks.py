"""Which files of a data set hold no whole image, found before any long work. Changes nothing, keeps no pixels."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from data.decode import decode, n_frames
from data.errors import BadFile, BadImage, UnreadableImage
from data.loaders import read_encoded
from data.samples import Sample

_WAITING = 1024
"""Samples that wait for the threads at a time: a million at once took 1.6 GB, and half a minute before the first."""


@dataclass(frozen=True)
class Checked:
    """A sample whose file was read and decoded."""

    sample: Sample
    bad: BadFile | None
    """Why it cannot be decoded or read."""
    n_frames: int = 1
    """Frames or pages, of which the first is used."""


def checked(samples: Sequence[Sample]) -> Iterator[Checked]:
    """Every sample with what is wrong with it, in order, decoded on all cores."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    waiting: deque[Future[Checked]] = deque()
    try:
        for sample in samples:
            waiting.append(pool.submit(_check, sample))
            if len(waiting) == _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, too: without waiting for the rest


def _check(sample: Sample) -> Checked:
    try:
        encoded = read_encoded(sample)
        decode(encoded, sample.path)
    except BadImage as error:
        is_system = isinstance(error, UnreadableImage)
        return Checked(sample, BadFile(sample.path, error.reason, is_system, sample.key))
    return Checked(sample, None, n_frames(encoded))
