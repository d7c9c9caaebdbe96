"""Which replica takes which pack of a global batch, so that all have about the same work.

The packs of the batch do not change, only who computes them; the loss is a sum over the batch, so it does not depend on
it either (but for the rounding of sums).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SWAPS = 400
"""Most exchanges after the greedy start; each lowers the heaviest replica, so the end is reached long before."""


def assign(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Indices into `costs` for each rank, equally many, ascending; the largest sum is about as small as can be.

    Longest first to the lightest rank that has room, then exchanges between the heaviest rank and others while they
    help. A function of its arguments only. Raises ValueError where the packs do not divide over the ranks.
    """
    if len(costs) % ranks:
        raise ValueError(f"{len(costs)} packs do not divide over {ranks} replicas")
    room = len(costs) // ranks
    taken: list[list[int]] = [[] for _ in range(ranks)]
    sums = [0.0] * ranks
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = min((r for r in range(ranks) if len(taken[r]) < room), key=lambda r: (sums[r], r))
        taken[rank].append(i)
        sums[rank] += costs[i]
    for _ in range(_SWAPS):
        if not _exchange(costs, taken, sums):
            break
    return [sorted(items) for items in taken]


def _exchange(costs: Sequence[float], taken: list[list[int]], sums: list[float]) -> bool:
    """One exchange of the heaviest rank with another that leaves both lighter than it was; False where none does."""
    heavy = max(range(len(sums)), key=lambda r: (sums[r], -r))
    mine = np.array([costs[i] for i in taken[heavy]])
    best, where = sums[heavy] * (1 - 1e-9), None
    for other in sorted(range(len(sums)), key=lambda r: (sums[r], r)):
        if other == heavy:
            continue
        theirs = np.array([costs[i] for i in taken[other]])
        moved = mine[:, None] - theirs[None, :]
        after = np.maximum(sums[heavy] - moved, sums[other] + moved)
        at = int(after.argmin())
        if after.flat[at] < best:
            best, where = float(after.flat[at]), (other, *divmod(at, len(theirs)))
    if where is None:
        return False
    other, a, b = where
    taken[heavy][a], taken[other][b] = taken[other][b], taken[heavy][a]
    for rank in (heavy, other):
        sums[rank] = sum(costs[i] for i in taken[rank])
    return True


def imbalance(costs: Sequence[float], groups: Sequence[Sequence[int]]) -> float:
    """Largest over mean work of the groups: 1 is even."""
    sums = [sum(costs[i] for i in group) for group in groups]
    return max(sums) * len(sums) / sum(sums)
