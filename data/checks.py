"""Which files of a data set hold no whole image, found before any long work. Changes nothing, keeps no pixels."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.decode import ImageFacts, decode_with_facts, n_frames
from data.errors import BadFile, BadImage, UnreadableImage
from data.reading import read_encoded
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
    facts: ImageFacts | None = None
    """None of a bad one."""
    picture: NDArray[np.uint8] | None = None
    """What `draw` made of its pixels."""


def checked(samples: Sequence[Sample], draw: Callable[[Tensor], NDArray[np.uint8]] | None = None) -> Iterator[Checked]:
    """Every sample with what is wrong with it, in order, decoded on all cores.

    `draw` is given the pixels, uint8 [3, H, W]: for who wants a small picture of each without decoding it once more.
    """
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    waiting: deque[Future[Checked]] = deque()
    try:
        for sample in samples:
            waiting.append(pool.submit(_check, sample, draw))
            if len(waiting) == _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, too: without waiting for the rest


def _check(sample: Sample, draw: Callable[[Tensor], NDArray[np.uint8]] | None) -> Checked:
    try:
        encoded = read_encoded(sample)
        pixels, facts = decode_with_facts(encoded, sample.path)
    except BadImage as error:
        is_system = isinstance(error, UnreadableImage)
        return Checked(sample, BadFile(sample.path, error.reason, is_system, sample.key))
    return Checked(sample, None, n_frames(encoded), facts, draw(pixels) if draw else None)
