"""Which domain each sample of the stream comes from: weights, a schedule of them, and caps on epochs.

The stream is cut into blocks (the packing windows). A block of b samples gives domain d its share w_d b by systematic
sampling: with edges e_d = b (w_1 + .. + w_d) and one offset u in [0, 1) from (seed, block), d gets
floor(e_d + u) - floor(e_(d-1) + u) samples. The counts add up to b and their expectation is exact. Each domain runs
through its own epochs, every one a keyed permutation; a domain at its cap leaves its share to the others. All of it
is a function of (seed, block, samples taken of each domain), which are the integers a checkpoint keeps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_glmv.config.schema import DataConfig
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.shuffle import key, permute, sample_order


@dataclass(frozen=True, eq=False)
class Domain:
    """One domain: its usable samples (places in the list of usable ones) and the most that are taken of it."""

    name: str
    members: NDArray[np.int64]
    most: float
    """Samples: epochs x size; infinite without a cap."""


class Mixture:
    """Blocks of the sample stream."""

    def __init__(self, domains: Sequence[Domain], phases: Mapping[int, Mapping[str, float]], seed: int) -> None:
        """phases: first sample of the stream -> weight of each domain from there on; one begins at 0."""
        self.domains = tuple(domains)
        self._seed = seed
        self._starts = sorted(phases)
        self._weights = [np.array([phases[start].get(d.name, 0.0) for d in domains]) for start in self._starts]
        sizes = [(d.name, d.most, hashlib.sha256(d.members.tobytes()).hexdigest()) for d in domains]
        text = json.dumps([sizes, [[s, w.tolist()] for s, w in zip(self._starts, self._weights, strict=True)]])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def nothing_taken(self) -> tuple[int, ...]:
        return (0,) * len(self.domains)

    def block(self, number: int, size: int, taken: Sequence[int]) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """(places of the usable samples in block `number`, shuffled; samples taken of each domain behind it).

        `taken` counts those before it. Raises DataError where the caps leave too few.
        """
        counts = self._shares(number, size, taken)
        parts = [
            domain.members[sample_order(before, count, len(domain.members), key(self._seed, n))]
            for n, (domain, before, count) in enumerate(zip(self.domains, taken, counts, strict=True))
            if count
        ]
        members = np.concatenate(parts)
        keys = np.full(size, key(self._seed, number, 2), dtype=np.uint64)
        shuffled = members[np.argsort(permute(np.arange(size), size, keys))]
        return shuffled, tuple(before + count for before, count in zip(taken, counts, strict=True))

    def _shares(self, number: int, size: int, taken: Sequence[int]) -> list[int]:
        phase = max(n for n, start in enumerate(self._starts) if start <= number * size or n == 0)
        weights = self._weights[phase].copy()
        left = [domain.most - before for domain, before in zip(self.domains, taken, strict=True)]
        offset = key(self._seed, number, 3) / 2**64
        counts = [0] * len(self.domains)
        open_size = size
        while open_size:
            if not weights.any():
                raise DataError("data.max_epochs", f"is used up after {sum(taken)} samples; raise it or end the run")
            edges = np.floor(open_size * np.cumsum(weights) / weights.sum() + offset)
            edges[-1] = math.floor(open_size + offset)
            more = np.diff(edges, prepend=math.floor(offset)).astype(int).tolist()
            over = [n for n, extra in enumerate(more) if counts[n] + extra > left[n]]
            for n in over or range(len(counts)):
                counts[n] = int(min(counts[n] + more[n], left[n]))
            for n in over:
                weights[n] = 0.0
            open_size = size - sum(counts)
        return counts


def build(data: DataConfig, names: Sequence[str], seed: int) -> Mixture | None:
    """The mixture that `data` describes over the usable samples, whose domains are `names`; None where it has no
    weights. Raises DataError for a domain that the data do not have."""
    if not data.mixture:
        if data.mixture_schedule or data.max_epochs:
            raise DataError("data.mixture", "has no weights, but data.mixture_schedule or data.max_epochs is given")
        return None
    phases = {0: data.mixture, **(data.mixture_schedule or {})}
    where = np.array(names)
    known = sorted(set(names))
    for option, found in (*(("mixture", phase) for phase in phases.values()), ("max_epochs", data.max_epochs or {})):
        for name, value in found.items():
            if name not in known:
                raise DataError(f"data.{option}", f"no usable sample of domain {name!r}; there are {', '.join(known)}")
            if not 0 <= value < math.inf:
                raise DataError(f"data.{option}", f"{name}={value} is not a number from 0 on")
        if option == "mixture" and not any(found.values()):
            raise DataError("data.mixture", "every weight is 0")
    used = [name for name in known if any(phase.get(name) for phase in phases.values())]
    domains = []
    for name in used:
        members = np.flatnonzero(where == name)
        epochs = (data.max_epochs or {}).get(name)
        domains.append(Domain(name, members, math.inf if epochs is None else math.floor(epochs * len(members))))
    return Mixture(domains, phases, seed)
