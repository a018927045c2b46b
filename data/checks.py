"""Which files of a data set hold no whole image, found before any long work. Changes nothing, keeps no pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from data.errors import BadImage
from data.loaders import read_sample
from data.samples import Sample


def undecodable(samples: Sequence[Sample]) -> Iterator[tuple[Sample, BadImage | None]]:
    """Each sample with the reason why it cannot be decoded or read, or None; in order, decoded on all cores."""

    def error_of(sample: Sample) -> BadImage | None:
        try:
            read_sample(sample)
        except BadImage as error:
            return error
        return None

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield from zip(samples, pool.map(error_of, samples), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, too: without waiting for the rest
