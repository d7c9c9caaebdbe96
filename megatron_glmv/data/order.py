"""Which samples are in pack number p: a pure function of (lengths, budget, window, seed), the same for any layout.

Samples run past in epochs, each a keyed permutation. Every `window` of them is packed by best fit together with what
the window before left over (its emptiest pack), and the packs of a window come in shuffled order. Nothing here holds
random state: a position is an integer, and {window, packs_before_window, carry} continues from the middle of a run
without packing again what lies before.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.packing import aligned, pack_window
from megatron_glmv.data.types import Json

_ROUNDS = 6
_KEPT_PACKS, _KEPT_STARTS = 16, 256
"""Windows whose packs, and whose beginnings, stay in memory: a loader looks a few steps ahead, a report a few back."""

Words = NDArray[np.uint64]


def _mix(words: Words) -> Words:
    """splitmix64's finaliser: every input bit reaches every output bit (Steele, Lea, Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _key(*parts: int) -> int:
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
        left, right, key = value[walking] >> half, value[walking] & mask, keys[walking]
        for turn in range(1, _ROUNDS + 1):
            salt = key + np.uint64(turn * 0x9E3779B97F4A7C15 % 2**64)
            left, right = right, left ^ (_mix(right + salt) & mask)
        value[walking] = (left << half) | right
        walking = walking[value[walking] >= n]
    return value.astype(np.int64)


def sample_order(start: int, count: int, n: int, seed: int) -> NDArray[np.int64]:
    """Which of n samples stand at stream positions start .. start + count; position n begins the second epoch."""
    positions = np.arange(start, start + count, dtype=np.int64)
    epochs = positions // n
    keys = {int(epoch): _key(seed, int(epoch)) for epoch in np.unique(epochs)}
    return permute(positions % n, n, np.array([keys[int(epoch)] for epoch in epochs], dtype=np.uint64))


@dataclass(frozen=True)
class _Window:
    """Where a window begins."""

    number: int
    packs_before: int
    carry: tuple[int, ...]
    """Samples the windows before left over, as indices into the usable samples."""


class PackOrder:
    """Pack number -> samples. `samples` are the usable ones, `lengths` their tokens in a pack (`packing.fit`)."""

    def __init__(
        self, samples: NDArray[np.int64], lengths: NDArray[np.int64], budget: int, window: int, seed: int
    ) -> None:
        if not len(samples):
            raise DataError(
                "data.pack_tokens", f"no sample fits a pack of {budget} tokens; raise it or lower the pixel budgets"
            )
        if window < 1:
            raise ValueError("a pack window holds at least one sample")
        self._samples, self._lengths = samples, lengths
        self.budget, self.window, self.seed = budget, window, seed
        text = f"{budget},{window},{seed}".encode()
        self.fingerprint = hashlib.sha256(text + samples.tobytes() + lengths.tobytes()).hexdigest()[:16]
        """Equal fingerprints give equal packs at every number."""
        self._starts = [_Window(0, 0, ())]
        self._packs: OrderedDict[int, list[tuple[int, ...]]] = OrderedDict()

    def pack(self, number: int) -> tuple[int, ...]:
        """Sample indices of the dataset in pack `number`, counted from 0 over the whole run."""
        window = self._find(number)
        return self._packs_of(window)[number - window.packs_before]

    def state_at(self, number: int) -> Json:
        """Integers from which `load_state` finds pack `number` without packing the windows before it."""
        window = self._find(number)
        return {
            "window": window.number,
            "packs_before_window": window.packs_before,
            "carry": list(window.carry),
            "fingerprint": self.fingerprint,
        }

    def load_state(self, state: Json) -> None:
        """Raises DataError where the state was made from other data, budget, window or seed."""
        if state["fingerprint"] != self.fingerprint:
            raise DataError(
                "data position",
                "the checkpoint's belongs to another data set, tokenizer, template, pixel or pack budget, window or"
                " seed; restore them, or begin a new run with init_from",
            )
        first = _Window(int(state["window"]), int(state["packs_before_window"]), tuple(map(int, state["carry"])))
        self._starts = [first]
        self._packs.clear()

    def _find(self, number: int) -> _Window:
        """The window that holds pack `number`; packs forward from the nearest known one."""
        if number < 0:
            raise ValueError(f"there is no pack {number}")
        if number < self._starts[0].packs_before:
            self._starts = [_Window(0, 0, ())]
        at = bisect_right(self._starts, number, key=lambda window: window.packs_before) - 1
        window = self._starts[at]
        while number >= window.packs_before + len(self._packs_of(window)):
            window = self._starts[window.number + 1 - self._starts[0].number]
        return window

    def _packs_of(self, window: _Window) -> list[tuple[int, ...]]:
        known = self._packs.get(window.number)
        if known is not None:
            self._packs.move_to_end(window.number)
            return known
        new = sample_order(window.number * self.window, self.window, len(self._samples), self.seed)
        members = [*window.carry, *new.tolist()]
        lengths = self._lengths[members].tolist()
        groups = pack_window(lengths, self.budget)
        carry = _take_emptiest(groups, lengths, self.budget)
        number = np.arange(len(groups), dtype=np.int64)
        keys = np.full(len(groups), _key(self.seed, window.number, 1), dtype=np.uint64)
        shuffled = permute(number, len(groups), keys)
        packs = [tuple(int(self._samples[members[i]]) for i in groups[g]) for g in shuffled.tolist()]
        if window.number == self._starts[-1].number:
            left = tuple(members[i] for i in carry)
            self._starts.append(_Window(window.number + 1, window.packs_before + len(packs), left))
            del self._starts[:-_KEPT_STARTS]
        self._packs[window.number] = packs
        while len(self._packs) > _KEPT_PACKS:
            self._packs.popitem(last=False)
        return packs


def _take_emptiest(groups: list[list[int]], lengths: Sequence[int], budget: int) -> list[int]:
    """Remove and return the group with the most room (the first of equals), unless all are full."""
    room = [budget - sum(aligned(lengths[i]) for i in group) for group in groups]
    emptiest = max(range(len(groups)), key=room.__getitem__)
    return groups.pop(emptiest) if room[emptiest] else []
