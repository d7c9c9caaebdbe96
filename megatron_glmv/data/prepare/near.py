"""Which hashes lie near each other, without comparing all with all: banded locality-sensitive hashing.

A band is a fixed random choice of bits; hashes that agree in all bits of any band are compared in full. With b bits of
B in a band, two hashes at distance d of B agree in it with (1 - d/B)^b. b grows with log2 of the count, so that a hash
meets about one stranger in a band whatever the size of the corpus, and the number of bands is what `recall` asks for:
the work is count x bands x log(count).

Shapes: M hashes of R bytes, B = 8 R bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.uint8]
Indices = NDArray[np.int64]
Near = Callable[[Indices, Indices], NDArray[np.bool_]]
"""Whether pairs (by index) are near, judged in full."""
MIN_BITS, MAX_BITS = 12, 60
CHUNK = 1 << 16
"""Hashes whose bits are unpacked at a time (16 MiB a hash of 256 bits)."""
SEED = 20250701


def bands(count: int, share: float, recall: float) -> tuple[int, int]:
    """(bands, bits of each) for `count` hashes and pairs that differ in `share` of their bits."""
    bits = min(MAX_BITS, max(MIN_BITS, math.ceil(math.log2(max(count, 2)))))
    agree = (1 - share) ** bits
    return max(1, math.ceil(math.log(1 - recall) / math.log1p(-min(agree, 1 - 1e-9)))), bits


@cache
def _chosen(width: int, bits: int, band: int) -> Indices:
    """Positions of a band's bits: a function of nothing else."""
    return np.sort(np.random.default_rng([SEED, width, bits, band]).permutation(width)[:bits]).astype(np.int64)


def keys(rows: Rows, bits: int, band: int) -> NDArray[np.uint64]:
    """[M]: a band's bits of each hash, as one number."""
    chosen = _chosen(rows.shape[1] * 8, bits, band)
    found = np.zeros(len(rows), np.uint64)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        for position in chosen:
            bit = part[:, position >> 3] >> np.uint8(7 - (position & 7)) & np.uint8(1)
            found[start : start + CHUNK] = found[start : start + CHUNK] << np.uint64(1) | bit.astype(np.uint64)
    return found


def pairs_of_band(found: NDArray[np.uint64], rows: Indices, near: Near) -> Iterator[tuple[Indices, Indices]]:
    """Near pairs (first, second) among the rows [M] with equal keys [M]; `rows` ascend, and first < second.

    In each group of equal keys the first is compared with all others, then the first of those that it was not near to,
    and so on: a group of n copies costs n comparisons and not n^2.
    """
    order = np.argsort(found, kind="stable").astype(np.int64)
    while len(order):
        key = found[order]
        start = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        size = np.diff(np.append(start, len(order)))
        leader = np.repeat(order[start], size)
        rest = np.ones(len(order), np.bool_)
        rest[start] = False
        first, second = leader[rest], order[rest]
        close = near(rows[first], rows[second])
        yield rows[first[close]], rows[second[close]]
        order = second[~close]


def without_near(rows: Rows, near: Near, share: float, recall: float) -> dict[int, int]:
    """Which rows go, and the earlier row that each is near to. Rows come in order of preference.

    A row goes only if it is near one that stays; afterwards no two that stay share a band and are near. A pure function
    of the rows.
    """
    count, bits = bands(len(rows), share, recall)
    gone: dict[int, int] = {}
    alive = np.arange(len(rows), dtype=np.int64)
    while True:
        edges: dict[int, set[int]] = {}
        for band in range(count):
            found = keys(rows[alive], bits, band)
            for first, second in pairs_of_band(found, alive, near):
                for a, b in zip(first.tolist(), second.tolist(), strict=True):
                    edges.setdefault(b, set()).add(a)
        if not edges:
            return gone
        for b in sorted(edges):
            if stays := [a for a in sorted(edges[b]) if a not in gone]:
                gone[b] = stays[0]
        alive = alive[[i not in gone for i in alive.tolist()]]
