"""Which samples share a pack: best fit, decreasing, over a window of samples whose lengths are known beforehand.

A sample starts at a multiple of ALIGN tokens. The constant is the same for every layout; otherwise packs, and with them
global batches, would depend on the layout.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALIGN = 16


def aligned(length: int, align: int = ALIGN) -> int:
    """Tokens that a sample takes in a pack."""
    return -(-length // align) * align


def pack_window(lengths: Sequence[int], budget: int, align: int = ALIGN) -> list[list[int]]:
    """Indices into `lengths`, grouped so that the aligned lengths of a group sum to at most `budget`.

    The longest sample first, each into the fullest pack that still holds it (the earliest of equals); a function of its
    arguments only. O(n log n) comparisons. Raises ValueError for a length below 1 or above the budget.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-aligned(lengths[i], align), i))
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), sorted
    for i in order:
        need = aligned(lengths[i], align)
        if not 0 < need <= budget:
            raise ValueError(f"sample {i} of {lengths[i]} tokens does not fit a pack of {budget}")
        at = bisect_left(room, (need, -1))
        if at == len(room):
            packs.append([i])
            free, pack = budget - need, len(packs) - 1
        else:
            free, pack = room.pop(at)
            packs[pack].append(i)
            free -= need
        if free >= align:
            insort(room, (free, pack))
    return packs


@dataclass(frozen=True)
class Fit:
    """What a pack budget makes of samples. n samples in, k of them usable."""

    samples: NDArray[np.int64]
    """[k] indices of the usable samples, ascending."""
    lengths: NDArray[np.int64]
    """[k] their tokens in a pack, after truncation."""
    truncated: int
    """Samples of text alone that lose their end."""
    dropped: NDArray[np.int64]
    """Indices of samples with media that no pack can hold."""


def fit(lengths: NDArray[np.int64], has_media: NDArray[np.bool_], budget: int, align: int = ALIGN) -> Fit:
    """Apply the policy for samples longer than the budget: text is cut at the end, a sample with media is dropped
    (a cut could fall inside an image). A length of 0 marks a sample that cannot be used at all.

    Raises ValueError where the budget is not a multiple of `align`: the last sample of a pack could overhang it.
    """
    if budget < align or budget % align:
        raise ValueError(f"a pack of {budget} tokens is not a multiple of {align}")
    too_long = lengths > budget
    usable = (lengths > 0) & ~(too_long & has_media)
    samples = np.flatnonzero(usable)
    return Fit(
        samples=samples,
        lengths=np.minimum(lengths[samples], budget),
        truncated=int((too_long & ~has_media).sum()),
        dropped=np.flatnonzero(too_long & has_media),
    )
