"""Images that look alike though their bytes differ: saved again, resized, cropped a little, mirrored or turned.

A perceptual hash finds candidates, their pixels confirm them, as medical images look alike without being the same.
pHash: the 8 x 8 lowest frequencies of the cosine transform of a 32 x 32 gray picture, each against their median
(Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010).
Run: softlabel data check DATA --near-duplicates

Defaults by measurement. Copies found of 300 HAM10000 train images of 224 px | of 300 MedPix slices of 300 px:
JPEG quality 60, half the size, 10 % brighter, mirrored, turned by 90 degrees 100 % | 100 %; 30 % brighter 98 % | 100 %;
2 % cropped 100 % | 88 %; 5 % cropped 99 % | 48 %; 10 % cropped 91 % | 35 %. Hardly any: 5 % cropped on one side alone,
turned by 5 degrees. Wrong hits among all pairs of HAM10000's train and test (no lesion shared): 0 of 2,389,338; at 0.97
there are 5. MedPix: train and test 0 of 330,600; train and dev 1 of 325,641: the same slice of a patient in two cases.

N images, P pairs.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.errors import BadOption

PICTURE_PX = 32
"""At 64 px confirming takes nine times as long, and told copies from others no better."""
_LOW = 8
_ORIENTATIONS = 8
"""Upright and mirrored, each turned by four angles: their hashes come from one cosine transform."""
_ZOOMS = (0.98, 0.96, 0.94, 0.92, 0.9)
"""Sides of the centred windows of one picture that are compared with the other one, too: what a crop has left."""
_COARSE = 0.05
"""How far below the wanted correlation that of pictures of 16 px may be: copies correlate there rather more."""
_FLAT_LEVELS = 2.0
"""Standard deviation, of 255, below which a picture is of one colour: it looks like all others of one."""
_ROUNDING = 1e-5
"""Of a correlation of two equal pictures in float32."""
_ROWS, _COLUMNS = 16, 16_384
"""Hashes that are compared at a time: 2 MB of differences, which stay in the processor's cache."""
_BATCH = 4096
_NO_NUMBER = np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class NearDuplicateConfig:
    """Which pairs of images count as near-duplicates."""

    max_hamming: int = 12
    """Bits of the 64 of a perceptual hash that may differ."""
    min_correlation: float = 0.98
    """Pearson's correlation of the gray pictures, at the best zoom."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_hamming <= 20:
            raise BadOption(f"--max-hamming must be in 0..20, got {self.max_hamming}; unrelated images differ in 32")
        if not 0.5 <= self.min_correlation <= 1:
            raise BadOption(f"--min-correlation must be in 0.5..1, got {self.min_correlation:g}")


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images that look alike, the most alike first."""

    one_P: NDArray[np.int64]
    """Numbers of images."""
    other_P: NDArray[np.int64]
    hamming_P: NDArray[np.uint8]
    """Bits of their hashes that differ."""
    correlation_P: NDArray[np.float32]
    is_turned_P: NDArray[np.bool_]
    """Whether one of them is mirrored or turned by a multiple of 90 degrees."""
    n_flat: int
    """Images of one colour, which were not compared."""


def gray_picture(pixels: Tensor) -> NDArray[np.uint8]:
    """RGB uint8 [3, H, W] -> gray uint8 [32, 32], each the mean of an area."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return np.asarray(image.convert("L").resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX))


def perceptual_hashes(pictures_NHW: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """pHash of each picture in each orientation, uint64 [8, N]; that of `_turned(picture, g)` in row g."""
    from scipy.fft import dctn

    found = np.empty((_ORIENTATIONS, len(pictures_NHW)), np.uint64)
    odd = np.arange(_LOW) % 2 == 1
    for start in range(0, len(pictures_NHW), _BATCH):
        rows = slice(start, start + _BATCH)
        low = dctn(pictures_NHW[rows].astype(np.float32), axes=(1, 2), norm="ortho")[:, :_LOW, :_LOW]
        for g in range(_ORIENTATIONS):
            turned = low.swapaxes(1, 2) if g & 4 else low
            # Mirroring an axis changes the sign of its odd frequencies.
            is_negative = (odd[:, None] & bool(g & 2)) ^ (odd & bool(g & 1))
            values = np.where(is_negative, -turned, turned).reshape(-1, _LOW * _LOW)
            bits = values > np.median(values, axis=1, keepdims=True)
            found[g, rows] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return found


def near_duplicates(
    pictures_NHW: NDArray[np.uint8],
    place_N: NDArray[np.int64],
    config: NearDuplicateConfig = NearDuplicateConfig(),
    progress: Callable[[int], object] = lambda n_images: None,
) -> NearDuplicates:
    """The pairs that look alike among images of different places (numbers of split and labels); on all cores."""
    kept = np.flatnonzero(pictures_NHW.reshape(-1, PICTURE_PX**2).std(axis=1, dtype=np.float32) >= _FLAT_LEVELS)
    order = kept[np.argsort(place_N[kept], kind="stable")]
    pictures = pictures_NHW[order]
    hashes = perceptual_hashes(pictures)
    # Rows of one place meet the columns of all later places: no pair twice, none within a place.
    _, starts = np.unique(place_N[order], return_index=True)
    bounds = [*starts.tolist(), len(order)]
    blocks = [
        (slice(row, min(row + _ROWS, end)), end)
        for start, end in itertools.pairwise(bounds) for row in range(start, end, _ROWS)
    ]  # fmt: skip
    parts = list[_Pairs]()
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for found in pool.map(lambda block: _compared(pictures, hashes, block[0], block[1], config), blocks):
            parts.append(found)
            progress(_ROWS)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, too: without waiting for the rest
    pairs = _Pairs.joined(parts).best()
    return NearDuplicates(
        order[pairs.one], order[pairs.other], pairs.hamming, pairs.correlation, pairs.g > 0,
        len(pictures_NHW) - len(kept),
    )  # fmt: skip


@dataclass(frozen=True)
class _Pairs:
    """Pairs of pictures, of which the other one in orientation `g` looks like the one."""

    one: NDArray[np.int64]
    other: NDArray[np.int64]
    g: NDArray[np.int64]
    hamming: NDArray[np.uint8]
    correlation: NDArray[np.float32]

    @staticmethod
    def joined(parts: Sequence[_Pairs]) -> _Pairs:
        return _Pairs(
            np.concatenate([_NO_NUMBER, *(part.one for part in parts)]),
            np.concatenate([_NO_NUMBER, *(part.other for part in parts)]),
            np.concatenate([_NO_NUMBER, *(part.g for part in parts)]),
            np.concatenate([np.empty(0, np.uint8), *(part.hamming for part in parts)]),
            np.concatenate([np.empty(0, np.float32), *(part.correlation for part in parts)]),
        )

    def __getitem__(self, rows: NDArray[Any]) -> _Pairs:
        return _Pairs(self.one[rows], self.other[rows], self.g[rows], self.hamming[rows], self.correlation[rows])

    def best(self) -> _Pairs:
        """Each pair once, in its best orientation (upright where it is as good); the most alike first."""
        order = np.lexsort((self.g, -self.correlation, self.other, self.one))
        ids = np.stack([self.one, self.other])[:, order]
        is_first = np.ones(len(order), bool)
        is_first[1:] = (ids[:, 1:] != ids[:, :-1]).any(axis=0)
        first = self[order[is_first]]
        return first[np.lexsort((first.other, first.one, -first.correlation))]


def _compared(
    pictures: NDArray[np.uint8], hashes: NDArray[np.uint64], rows: slice, first: int, config: NearDuplicateConfig
) -> _Pairs:
    """The pairs of some rows and the columns from `first` on."""
    upright = hashes[0, rows, None]
    parts = list[_Pairs]()
    for start in range(first, hashes.shape[1], _COLUMNS):
        near = list[_Pairs]()
        for g in range(_ORIENTATIONS):
            hamming = popcount(upright ^ hashes[g, None, start : start + _COLUMNS])
            is_near = hamming <= config.max_hamming
            if is_near.any():
                row, column = np.nonzero(is_near)
                bits, unknown = hamming[is_near], np.zeros(len(row), np.float32)
                near.append(_Pairs(row + rows.start, column + start, np.full(len(row), g), bits, unknown))
        candidates = _Pairs.joined(near)
        for at in range(0, len(candidates.one), _BATCH):
            some = candidates[np.arange(at, min(at + _BATCH, len(candidates.one)))]
            parts.append(_confirmed(pictures, some, config.min_correlation))
    return _Pairs.joined(parts)


def popcount(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """How many bits of each word are 1."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    # numpy before 2.0, ten times slower: sums of 2, 4 and 8 neighbouring bits, then of the eight bytes (Warren,
    # Hacker's Delight, 2nd edition, figure 5-2).
    m1, m2, m4, h1 = (np.uint64(int(digits * 8, 16)) for digits in ("55", "33", "0f", "01"))
    words = words - ((words >> np.uint64(1)) & m1)
    words = (words & m2) + ((words >> np.uint64(2)) & m2)
    words = (words + (words >> np.uint64(4))) & m4
    return ((words * h1) >> np.uint64(56)).astype(np.uint8)


def _confirmed(pictures: NDArray[np.uint8], pairs: _Pairs, min_correlation: float) -> _Pairs:
    """Those candidates whose pixels correlate, too, with their correlation."""
    ours, theirs = pictures[pairs.one].astype(np.float32), pictures[pairs.other].astype(np.float32)
    for g in np.unique(pairs.g):
        theirs[pairs.g == g] = _turned(theirs[pairs.g == g], g)
    # A quarter of the pixels leaves about one candidate in ten.
    near = np.flatnonzero(_best_correlations(_halved(ours), _halved(theirs)) >= min_correlation - _COARSE)
    best = _best_correlations(ours[near], theirs[near])
    return replace(pairs[near], correlation=best)[best >= min_correlation - _ROUNDING]


def _best_correlations(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pearson's correlation of each pair of pictures, float32 [N]: whole, or a window of one with the other one."""
    sides = ((ours, _centred(theirs)), (theirs, _centred(ours)))
    best = _correlations(_centred(ours), sides[0][1])
    for zoom in _ZOOMS:
        window = _window(zoom, ours.shape[1])
        for one, other in sides:
            best = np.maximum(best, _correlations(_centred(window @ one @ window.T), other))
    return best


def _halved(pictures_NHW: NDArray[np.float32]) -> NDArray[np.float32]:
    side = PICTURE_PX // 2
    means: NDArray[np.float32] = pictures_NHW.reshape(-1, side, 2, side, 2).mean(axis=(2, 4))
    return means


def _turned(pictures_NHW: NDArray[Any], g: int) -> NDArray[Any]:
    """The pictures in orientation g: transposed with bit 2, then upside down with bit 1, mirrored with bit 0."""
    turned = pictures_NHW.swapaxes(1, 2) if g & 4 else pictures_NHW
    turned = turned[:, ::-1] if g & 2 else turned
    return turned[:, :, ::-1] if g & 1 else turned


def _window(zoom: float, px: int) -> NDArray[np.float32]:
    """The matrix that enlarges the centred window of this side (1 is the whole) to all pixels, linearly."""
    at = (np.arange(px) + 0.5 - px / 2) * zoom + px / 2 - 0.5
    weights: NDArray[np.float32] = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(px))).astype(np.float32)
    return weights


def _centred(pictures_NHW: NDArray[Any]) -> NDArray[np.float32]:
    """Mean 0 and length 1, float32 [N, H * W]."""
    flat = pictures_NHW.reshape(-1, math.prod(pictures_NHW.shape[1:])).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return flat


def _correlations(one_NK: NDArray[np.float32], other_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    correlations: NDArray[np.float32] = np.einsum("nk,nk->n", one_NK, other_NK)
    return correlations
