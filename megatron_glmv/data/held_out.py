"""The packs of a validation: a random subset of the held-out set that fills them, or all of it.

Best fit puts samples of like lengths together, so the first packs of a long window hold a few lengths, and with them a
few domains: eight packs from a window of 1,024 samples can miss the only text of eight. Here the samples are chosen
before they are packed, each as likely whatever its length, and all of them are in where they fit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megatron_glmv.data.order import PackOrder
from megatron_glmv.data.packing import ALIGN, aligned, pack_window
from megatron_glmv.data.shuffle import sample_order


class HeldOutOrder(PackOrder):
    """`packs` packs, the same ones again behind them. Samples that fit several times are in them several times."""

    def __init__(
        self, samples: NDArray[np.int64], lengths: NDArray[np.int64], budget: int, packs: int, seed: int
    ) -> None:
        super().__init__(samples, lengths, budget, 1, seed)
        self._chosen = [tuple(int(samples[i]) for i in group) for group in choose(lengths, budget, packs, seed)]

    def pack(self, number: int) -> tuple[int, ...]:
        return self._chosen[number % len(self._chosen)]


def choose(lengths: NDArray[np.int64], budget: int, packs: int, seed: int) -> list[list[int]]:
    """`packs` groups of indices into `lengths`: as many samples as fit, in the order of a keyed permutation."""
    fits = np.cumsum([aligned(int(length)) for length in lengths[_first(packs * budget // ALIGN, len(lengths), seed)]])
    count = int(np.searchsorted(fits, packs * budget, side="right"))
    while True:
        order = _first(max(count, 1), len(lengths), seed)
        groups = pack_window(lengths[order].tolist(), budget)
        if len(groups) <= packs:
            break
        count -= 1
    chosen = [[int(order[i]) for i in group] for group in groups]
    later = _first(count + packs, len(lengths), seed)[count:]  # one sample less can be several packs less
    return chosen + [[int(i)] for i in later[: packs - len(chosen)]]


def _first(count: int, size: int, seed: int) -> NDArray[np.int64]:
    return sample_order(0, count, size, seed)
