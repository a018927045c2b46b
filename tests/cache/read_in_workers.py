"""A script that reads a cache in worker processes. Arguments: fork|spawn|forkserver CACHE OTHER.

Prints two rows as a worker read them, then the error of a worker that meets OTHER in the place of CACHE.
"""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from cache import CacheError, CacheReader


def read(reader: CacheReader) -> np.ndarray:
    return reader.logits([2, 0])


if __name__ == "__main__":
    method, path, other = sys.argv[1:]
    opened_only = CacheReader(path)
    reading = CacheReader(path)
    read(reading)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        sys.stdout.write(f"{pool.submit(read, reading).result().tolist()}\n")
        os.replace(other, path)
        try:
            pool.submit(read, opened_only).result()
        except CacheError as error:
            sys.stdout.write(f"{type(error).__name__}: {error}\n")
