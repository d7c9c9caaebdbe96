"""Keyed permutations: the order of an epoch without a table of it, equal on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6

Words = NDArray[np.uint64]


def _mix(words: Words) -> Words:
    """splitmix64's finaliser: every input bit reaches every output bit (Steele, Lea, Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def key(*parts: int) -> int:
    """64 bits that are a function of some integers."""
    digest = hashlib.sha256(",".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def permute(index: NDArray[np.int64], n: int, keys: Words) -> NDArray[np.int64]:
    """Where a keyed permutation of 0..n-1 sends each index; `keys` holds one key per index.

    A Feistel network over the next power of four, applied again to what falls outside (cycle walking): no table of n.
    """
    if n <= 1:
        return np.zeros_like(index)
    half = np.uint64(((n - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    value = index.astype(np.uint64)
    walking = np.arange(len(value))
    while len(walking):
        left, right, salted = value[walking] >> half, value[walking] & mask, keys[walking]
        for turn in range(1, _ROUNDS + 1):
            salt = salted + np.uint64(turn * 0x9E3779B97F4A7C15 % 2**64)
            left, right = right, left ^ (_mix(right + salt) & mask)
        value[walking] = (left << half) | right
        walking = walking[value[walking] >= n]
    return value.astype(np.int64)


def sample_order(start: int, count: int, n: int, seed: int) -> NDArray[np.int64]:
    """Which of n samples stand at stream positions start .. start + count; position n begins the second epoch."""
    positions = np.arange(start, start + count, dtype=np.int64)
    epochs = positions // n
    keys = {int(epoch): key(seed, int(epoch)) for epoch in np.unique(epochs)}
    return permute(positions % n, n, np.array([keys[int(epoch)] for epoch in epochs], dtype=np.uint64))
