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
from megatron_glmv.data.mixture import Mixture
from megatron_glmv.data.packing import aligned, pack_window
from megatron_glmv.data.shuffle import key, permute, sample_order
from megatron_glmv.data.types import Json

_KEPT_PACKS, _KEPT_STARTS = 16, 256
"""Windows whose packs, and whose beginnings, stay in memory: a loader looks a few steps ahead, a report a few back."""


@dataclass(frozen=True)
class _Window:
    """Where a window begins."""

    number: int
    packs_before: int
    carry: tuple[int, ...]
    """Samples the windows before left over, as indices into the usable samples."""
    taken: tuple[int, ...] = ()
    """Samples of each domain of the mixture in the windows before."""


class PackOrder:
    """Pack number -> samples. `samples` are the usable ones, `lengths` their tokens in a pack (`packing.fit`)."""

    def __init__(
        self,
        samples: NDArray[np.int64],
        lengths: NDArray[np.int64],
        budget: int,
        window: int,
        seed: int,
        mixture: Mixture | None = None,
    ) -> None:
        """mixture: chooses the samples of each window by domain; without one all run past in epochs."""
        if not len(samples):
            raise DataError(
                "data.pack_tokens", f"no sample fits a pack of {budget} tokens; raise it or lower the pixel budgets"
            )
        if window < 1:
            raise ValueError("a pack window holds at least one sample")
        self._samples, self._lengths = samples, lengths
        self.budget, self.window, self.seed = budget, window, seed
        self._mixture = mixture
        text = f"{budget},{window},{seed}{',' + mixture.fingerprint if mixture else ''}".encode()
        self.fingerprint = hashlib.sha256(text + samples.tobytes() + lengths.tobytes()).hexdigest()[:16]
        """Equal fingerprints give equal packs at every number."""
        self._starts = [self._first()]
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
            "taken": list(window.taken),
            "fingerprint": self.fingerprint,
        }

    def load_state(self, state: Json) -> None:
        """Raises DataError where the state was made from other data, budget, window or seed."""
        if state["fingerprint"] != self.fingerprint:
            raise DataError(
                "data position",
                "the checkpoint's belongs to another data set, tokenizer, template, pixel or pack budget, window,"
                " mixture or seed; restore them, or begin a new run with init_from",
            )
        integers = (tuple(map(int, state.get(name, ()))) for name in ("carry", "taken"))
        self._starts = [_Window(int(state["window"]), int(state["packs_before_window"]), *integers)]
        self._packs.clear()

    def _first(self) -> _Window:
        return _Window(0, 0, (), self._mixture.nothing_taken if self._mixture else ())

    def _find(self, number: int) -> _Window:
        """The window that holds pack `number`; packs forward from the nearest known one."""
        if number < 0:
            raise ValueError(f"there is no pack {number}")
        if number < self._starts[0].packs_before:
            self._starts = [self._first()]
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
        taken: tuple[int, ...] = ()
        if self._mixture is None:
            new = sample_order(window.number * self.window, self.window, len(self._samples), self.seed)
        else:
            new, taken = self._mixture.block(window.number, self.window, window.taken)
        members = [*window.carry, *new.tolist()]
        lengths = self._lengths[members].tolist()
        groups = pack_window(lengths, self.budget)
        carry = _take_emptiest(groups, lengths, self.budget)
        number = np.arange(len(groups), dtype=np.int64)
        keys = np.full(len(groups), key(self.seed, window.number, 1), dtype=np.uint64)
        shuffled = permute(number, len(groups), keys)
        packs = [tuple(int(self._samples[members[i]]) for i in groups[g]) for g in shuffled.tolist()]
        if window.number == self._starts[-1].number:
            left = tuple(members[i] for i in carry)
            self._starts.append(_Window(window.number + 1, window.packs_before + len(packs), left, taken))
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
