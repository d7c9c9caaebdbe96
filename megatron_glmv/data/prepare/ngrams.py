"""Sequences of words as 64-bit numbers, so that a text is compared with millions of others by sorting.

Shapes: L words of a text, n words of a sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplication modulo 2^64 loses nothing; the golden ratio's bits."""


def numbers(words: Sequence[str]) -> Numbers:
    """[L]: a word's number is the beginning of its BLAKE2 digest."""
    known: dict[str, int] = {}
    for word in words:
        if word not in known:
            raw = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            known[word] = int.from_bytes(raw, "little")
    return np.array([known[word] for word in words], np.uint64)


def sequences(found: Numbers, n: int) -> Numbers:
    """[L - n + 1]: one number for each n words in a row (a polynomial in _BASE modulo 2^64); empty where L < n."""
    count = len(found) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for k in range(n):
        total = total * _BASE + found[k : k + count]
    return total
