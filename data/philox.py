"""The numbers of `numpy.random.Philox` for many keys at once: making a generator for each costs a hundred times more.

Draws nothing by itself (`data.views` says what the numbers are for). N keys.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B))
_ROUNDS = 10
_CHUNK = 8192
"""Keys at a time: what is in between stays in the processor's cache."""
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def doubles(keys: NDArray[np.uint8], n_doubles: int, counter: tuple[int, int, int]) -> NDArray[np.float64]:
    """`Generator(Philox(key=key, counter=[0, *counter])).random(n)` of each key, float64 [N, n], bit for bit.

    `keys` are 16 bytes each, uint8 [N, 16], read as little-endian numbers of 128 bits.
    """
    words_N2 = np.ascontiguousarray(keys).view("<u8").astype(np.uint64)
    found = np.empty((len(keys), 4 * -(-n_doubles // 4)), np.uint64)
    for start in range(0, len(keys), _CHUNK):
        part = slice(start, start + _CHUNK)
        for block in range(found.shape[1] // 4):
            # NumPy's generator counts before it computes, so that the first block has number 1.
            found[part, 4 * block : 4 * block + 4] = _block(words_N2[part].T, (block + 1, *counter)).T
    return np.asarray((found[:, :n_doubles] >> np.uint64(11)) * (1.0 / 9007199254740992.0), np.float64)


def _block(key: NDArray[np.uint64], counter: tuple[int, int, int, int]) -> NDArray[np.uint64]:
    """Philox4x64-10 (Salmon et al. 2011): key [2, N] -> four words of each, [4, N]."""
    key0, key1 = key[0].copy(), key[1].copy()
    word0, word1, word2, word3 = (np.full(len(key0), word, np.uint64) for word in counter)
    for number in range(_ROUNDS):
        if number:
            key0 += _KEY_STEPS[0]
            key1 += _KEY_STEPS[1]
        high0, low0 = _product(word0, _MULTIPLIERS[0])
        high1, low1 = _product(word2, _MULTIPLIERS[1])
        word0, word1, word2, word3 = high1 ^ word1 ^ key0, low1, high0 ^ word3 ^ key1, low0
    return np.stack([word0, word1, word2, word3])


def _product(words: NDArray[np.uint64], factor: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The upper and the lower 64 bits of each product."""
    factor_low, factor_high = np.uint64(factor & 0xFFFFFFFF), np.uint64(factor >> 32)
    low, high = words & _LOW, words >> _HALF
    cross0, cross1 = low * factor_high, high * factor_low
    carry = (((low * factor_low) >> _HALF) + (cross0 & _LOW) + (cross1 & _LOW)) >> _HALF
    return high * factor_high + (cross0 >> _HALF) + (cross1 >> _HALF) + carry, words * np.uint64(factor)
