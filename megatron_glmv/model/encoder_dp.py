"""Encoder data parallelism: the tensor-parallel ranks, which would all encode every image, encode each one once.

Shapes: N patches, V values of a patch, F frames, M visual tokens, H decoder width, R ranks of the group.
"""

from __future__ import annotations

import heapq
from typing import Any

import torch
import torch.distributed as dist

from megatron_glmv.config.schema import VisionConfig
from megatron_glmv.model.vision import VisionEncoder

Frame = tuple[int, int]
"""Height and width in patches."""


def frame_cost(frame: Frame, vision: VisionConfig) -> int:
    """Multiply-adds of one frame in a block: projections and SwiGLU per patch, and attention over the frame."""
    patches = frame[0] * frame[1]
    return patches * (4 * vision.hidden**2 + 3 * vision.hidden * vision.ffn + 2 * patches * vision.hidden)


def assign(costs: list[int], ranks: int) -> list[list[int]]:
    """Items of each rank: the dearest first, always to the cheapest rank (LPT, at most 4/3 of the best makespan)."""
    loads = [(0, rank) for rank in range(ranks)]
    items: list[list[int]] = [[] for _ in range(ranks)]
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)
        items[rank].append(item)
        heapq.heappush(loads, (load + costs[item], rank))
    return [sorted(mine) for mine in items]


class _GatherFeatures(torch.autograd.Function):
    """Ranks' features of different lengths, one behind the other.

    What follows is computed equally by every rank of the group, so each holds the whole gradient already and keeps the
    rows of its own features: no communication, and no sum.
    """

    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, counts: list[int], group: Any) -> torch.Tensor:
        rank = group.rank()
        ctx.rows = (sum(counts[:rank]), counts[rank])
        padded = mine.new_zeros(max(counts), mine.shape[1])
        padded[: counts[rank]] = mine
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        start, count = ctx.rows
        return gradient[start : start + count].contiguous(), None, None


def encode(encoder: VisionEncoder, patches: torch.Tensor, frames: list[Frame], group: Any) -> torch.Tensor:
    """Features of all frames in order, [M, H]. `patches` [N, V] are those of all frames; `group` None: no spreading.

    A rank with nothing to encode runs a blank frame and keeps none of its rows, so that every parameter takes part in
    every backward pass (with gradient zero): gradient reduction that overlaps it waits for each of them.
    """
    merge = encoder.vision.merge
    ranks, rank = (1, 0) if group is None else (group.size(), group.rank())
    shares = assign([frame_cost(frame, encoder.vision) for frame in frames], ranks)
    sizes = [height * width for height, width in frames]
    if not shares[rank]:
        blank = patches.new_zeros(merge * merge, encoder.vision.patch_values)
        mine: torch.Tensor = encoder(blank, [(merge, merge)])[:0]
    elif ranks == 1:
        mine = encoder(patches, frames)
    else:
        rows = torch.split(patches, sizes)
        mine = encoder(torch.cat([rows[i] for i in shares[rank]]), [frames[i] for i in shares[rank]])
    if ranks == 1 or not frames:
        return mine
    tokens = [size // (merge * merge) for size in sizes]
    counts = [sum(tokens[i] for i in share) for share in shares]
    gathered: torch.Tensor = _GatherFeatures.apply(mine, counts, group)  # type: ignore[no-untyped-call]
    pieces = torch.split(gathered, [tokens[i] for share in shares for i in share])
    place = {frame: k for k, frame in enumerate(i for share in shares for i in share)}
    return torch.cat([pieces[place[i]] for i in range(len(frames))])
