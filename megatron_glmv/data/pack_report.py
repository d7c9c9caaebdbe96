"""How well samples pack, and how evenly packs spread over replicas, beside what simpler ways would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_glmv.data.balance import assign, imbalance
from megatron_glmv.data.order import PackOrder
from megatron_glmv.data.packing import ALIGN, aligned
from megatron_glmv.data.shuffle import sample_order

PRESET = 20_000
"""Samples of the preset mixture."""


@dataclass(frozen=True)
class Fill:
    """Share of the slots that are used: by the aligned samples, and by their tokens."""

    aligned: float
    tokens: float
    packs: int


def preset(count: int = PRESET, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(tokens, patches) of a mixture like a vision-language model's: captions and short questions, single images,
    documents, videos; log-normal each, with 24 to 30,000 tokens. A visual token is four patches."""
    random = np.random.default_rng(seed)
    kind = random.choice(4, count, p=[0.35, 0.4, 0.17, 0.08])
    centre, spread = np.array([5.0, 6.3, 7.4, 8.6])[kind], np.array([0.7, 0.7, 0.6, 0.6])[kind]
    tokens = np.clip(np.exp(random.normal(centre, spread)), 24, 30_000).astype(np.int64)
    visual = np.array([0.0, 0.7, 0.5, 0.9])[kind]
    return tokens, 4 * (tokens * visual).astype(np.int64)


def in_order(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Naive packing: the next sample goes into the open pack, or closes it."""
    packs: list[list[int]] = [[]]
    used = 0
    for i, length in enumerate(lengths):
        if used + aligned(length) > budget:
            packs.append([])
            used = 0
        packs[-1].append(i)
        used += aligned(length)
    return packs


def one_epoch(order: PackOrder, samples: int) -> list[list[int]]:
    """Packs until as many samples were handed out as there are."""
    packs: list[list[int]] = []
    left = samples
    while left > 0:
        packs.append(list(order.pack(len(packs))))
        left -= len(packs[-1])
    return packs


def fill(packs: Sequence[Sequence[int]], lengths: NDArray[np.int64], budget: int) -> Fill:
    """The last pack is left out: it is only as full as the data reach."""
    packs = packs[:-1] if len(packs) > 1 else packs
    slots = len(packs) * budget
    used = [lengths[list(pack)] for pack in packs]
    whole = sum(int((-(-x // ALIGN) * ALIGN).sum()) for x in used)
    return Fill(whole / slots, sum(int(x.sum()) for x in used) / slots, len(packs))


def spread(costs: Sequence[float], ranks: int, per_rank: int) -> tuple[float, float, int]:
    """(balanced, round-robin, steps): max over mean of the replicas' work, averaged over the steps."""
    size = ranks * per_rank
    steps = len(costs) // size
    balanced, plain = [], []
    for step in range(steps):
        batch = costs[step * size : (step + 1) * size]
        balanced.append(imbalance(batch, assign(batch, ranks)))
        plain.append(imbalance(batch, [range(r, size, ranks) for r in range(ranks)]))
    return (float(np.mean(balanced)), float(np.mean(plain)), steps) if steps else (float("nan"), float("nan"), 0)


def report(
    tokens: NDArray[np.int64],
    costs: NDArray[np.float64],
    budget: int,
    window: int,
    seed: int,
    *,
    ranks: Sequence[int] = (8, 64),
    per_rank: int = 8,
) -> list[str]:
    """Lines for the terminal. `costs` are those of the samples at their full length."""
    kept = np.flatnonzero(tokens > 0)
    lengths = np.minimum(tokens[kept], budget)
    order = PackOrder(np.arange(len(kept)), lengths, budget, window, seed)
    ours = one_epoch(order, len(kept))
    shuffled = sample_order(0, len(kept), len(kept), seed)
    naive = [[int(shuffled[i]) for i in pack] for pack in in_order(lengths[shuffled].tolist(), budget)]
    lines = [f"{len(kept)} samples, {int(lengths.sum())} tokens, packs of {budget}, alignment {ALIGN}, window {window}"]
    for name, packs in (("best fit", ours), ("in order (naive)", naive)):
        found = fill(packs, lengths, budget)
        lines.append(f"  {name:17s} fill {found.aligned:.4f} (tokens alone {found.tokens:.4f}), {found.packs} packs")
    work = costs[kept]
    per_pack = [float(work[pack].sum()) for pack in ours[:-1]]
    for count in ranks:
        share = min(per_rank, len(per_pack) // count)
        balanced, plain, steps = spread(per_pack, count, share) if share else (float("nan"), float("nan"), 0)
        lines.append(
            f"  {count:3d} replicas x {share} packs, {steps} steps: work max/mean {balanced:.4f} by cost,"
            f" {plain:.4f} round-robin"
        )
    return lines
