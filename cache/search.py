"""Find keys and views in the tables of a cache: by columns of integers, in memory that grows with what is asked alone.

Never opens a file. Run: `softlabel train DATA t.h5 -o RUN`

Legend: N samples, R rows = (sample, view), M asked for.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from cache.errors import CacheMismatch
from cache.layout import KEY_BYTES, sortable

_STRETCH = 1 << 20
_MAX_VIEW = 0xFFFF


def as_keys(keys: np.ndarray | Iterable[bytes]) -> np.ndarray:
    """Keys uint8 (M,16), or 16 bytes each -> uint8 (M,16), contiguous; CacheMismatch for any other shape."""
    if isinstance(keys, np.ndarray) and keys.dtype == np.uint8:
        wanted = keys
    else:
        listed = [bytes(key) for key in keys]
        if any(len(key) != KEY_BYTES for key in listed):
            raise CacheMismatch(f"a key has {KEY_BYTES} bytes, got lengths {sorted({len(key) for key in listed})}")
        wanted = np.frombuffer(b"".join(listed), np.uint8).reshape(-1, KEY_BYTES)
    if wanted.ndim != 2 or wanted.shape[1] != KEY_BYTES:
        raise CacheMismatch(f"keys are {wanted.shape}, expected (M, {KEY_BYTES})")
    return np.ascontiguousarray(wanted)


class KeyColumn:
    """Sorted, unique keys, uint8 (N,16), to be searched by their first eight bytes as one integer.

    Numpy searches integers ten times faster than bytes. Hashes that begin alike are as rare as collisions of 64 bits;
    a file may hold some all the same: all are compared as bytes then.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self._keys = keys
        self._first = first_integers(keys)
        self._begin_alike = bool((self._first[1:] == self._first[:-1]).any())

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Keys uint8 (M,16) -> their indices, int64 (M,), -1 where there is no such key."""
        found = np.empty(len(wanted), np.int64)
        for start in range(0, len(wanted), _STRETCH):
            found[start : start + _STRETCH] = self._find(wanted[start : start + _STRETCH])
        return found

    def _find(self, wanted: np.ndarray) -> np.ndarray:
        at = self._first_not_below(wanted)
        at[at == len(self._keys)] = 0
        at[sortable(self._keys)[at] != sortable(wanted)] = -1
        return at

    def _first_not_below(self, wanted: np.ndarray) -> np.ndarray:
        if self._begin_alike:
            return np.searchsorted(sortable(self._keys), sortable(wanted)).astype(np.int64)
        first = first_integers(wanted)
        if (first[1:] >= first[:-1]).all():
            return np.searchsorted(self._first, first).astype(np.int64)
        # In order, neighbours are searched for in the same part of memory: twelve times faster at ten million.
        order, at = np.argsort(first), np.empty(len(wanted), np.int64)
        at[order] = np.searchsorted(self._first, first[order])
        return at


def first_integers(keys: np.ndarray) -> np.ndarray:
    """The first eight bytes of each key, uint8 (M,16), as integers that sort as these bytes do: uint64 (M,)."""
    return np.ascontiguousarray(keys).view(">u8")[:, 0].astype(np.uint64)


def find_rows(first_row: np.ndarray, view: np.ndarray, sample_indices: Any, views: Any) -> np.ndarray:
    """Sample indices and view indices, broadcast -> row numbers int64, -1 where that sample lacks that view.

    first_row uint64 (N+1,), view uint16 (R,), ascending within a sample; a sample index of -1 (not found) gives -1.
    """
    samples, wanted = np.broadcast_arrays(np.asarray(sample_indices, np.int64), np.asarray(views, np.int64))
    found, shape, first = np.empty(samples.size, np.int64), samples.shape, first_row.view(np.int64)
    samples, wanted = samples.reshape(-1), wanted.reshape(-1)
    for start in range(0, len(found), _STRETCH):
        part = slice(start, start + _STRETCH)
        found[part] = _rows_of(first, view, samples[part], wanted[part])
    return found.reshape(shape)


def _rows_of(first: np.ndarray, view: np.ndarray, samples: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    is_askable = (samples >= 0) & (samples < len(first) - 1) & (wanted >= 0) & (wanted <= _MAX_VIEW)
    samples = np.where(is_askable, samples, 0)
    begin = first[samples]
    # Views ascend, so view v stands at the v-th place or before: there, where a sample has all of them.
    at = np.minimum(begin + np.clip(wanted, 0, _MAX_VIEW), first[samples + 1] - 1)
    elsewhere = np.flatnonzero((view[at] != wanted) & is_askable)
    if len(elsewhere):
        at[elsewhere] = _bisected(view, begin[elsewhere], at[elsewhere], wanted[elsewhere])
    return np.where(is_askable & (view[at] == wanted), at, np.int64(-1))


def _bisected(view: np.ndarray, low: np.ndarray, high: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of each stretch `low .. high` of rows, the first whose view is not below the wanted one, or else the last."""
    while (low < high).any():
        middle = (low + high) // 2
        is_below = view[middle] < wanted
        low, high = np.where(is_below, np.minimum(middle + 1, high), low), np.where(is_below, high, middle)
    return low


def owners(first_row: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The sample index of each row: int64 (M,) -> int64 (M,)."""
    return np.searchsorted(first_row.view(np.int64), rows, side="right") - 1
