"""Encoder data parallelism: the tensor- and context-parallel ranks, which would all encode every image of their pack,
encode each frame once and send its features to where they are fused.

Shapes: N patches, V values of a patch, F frames, M visual tokens, H decoder width, R ranks of the group.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel

from megatron_glmv.config.schema import VisionConfig
from megatron_glmv.model.vision import VisionEncoder

Frame = tuple[int, int]
"""Height and width in patches."""


def frame_cost(frame: Frame, vision: VisionConfig) -> int:
    """Multiply-adds of one frame in a block: projections and SwiGLU per patch, and attention over the frame.

    What lies around the blocks (patch embedding, merger) is a fixed amount per patch, 6 % of GLM-4.5V's, and left out.
    """
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


@dataclass(frozen=True)
class Exchange:
    """What one rank encodes, sends and receives. Every rank works it out from the batch's geometry by itself."""

    frames: list[int]
    """Frames that this rank encodes, ascending."""
    order: torch.Tensor
    """[sent] its features by receiving rank; indices into its own features."""
    sends: list[int]
    """[R] features sent to each rank."""
    receives: list[int]
    """[R] features received from each rank."""
    received: torch.Tensor
    """[sum of receives] which of the batch's features these are, by sender."""


def plan_exchange(costs: list[int], tokens: list[int], wanted_by: torch.Tensor, rank: int, ranks: int) -> Exchange:
    """Cost and visual tokens of each frame; wanted_by [M] int64, the rank that fuses each feature."""
    shares = assign(costs, ranks)
    encoder_of_frame = torch.zeros(len(costs), dtype=torch.int64)
    for holder, share in enumerate(shares):
        encoder_of_frame[share] = holder
    made_by = torch.repeat_interleave(encoder_of_frame, torch.tensor(tokens, dtype=torch.int64))
    to = wanted_by[made_by == rank]
    here = (wanted_by == rank).nonzero().flatten()
    by_sender = made_by[here].argsort(stable=True)
    return Exchange(
        frames=shares[rank],
        order=to.argsort(stable=True),
        sends=torch.bincount(to, minlength=ranks).tolist(),
        receives=torch.bincount(made_by[here], minlength=ranks).tolist(),
        received=here[by_sender],
    )


def encode(encoder: VisionEncoder, patches: torch.Tensor, frames: list[Frame]) -> torch.Tensor:
    """Features of all frames in order, [M, H]; patches [N, V] are theirs.

    Without frames a blank one is encoded and none of its rows kept, so that every parameter takes part in every
    backward pass (with gradient zero): gradient reduction that overlaps it waits for each of them.
    """
    if frames:
        return encoder(patches, frames)  # type: ignore[no-any-return]
    merge = encoder.vision.merge
    return encoder(patches.new_zeros(merge * merge, encoder.vision.patch_values), [(merge, merge)])[:0]  # type: ignore[no-any-return]


def encode_spread(
    encoder: VisionEncoder, patches: torch.Tensor, frames: list[Frame], wanted_by: torch.Tensor, group: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each frame encoded by one rank of `group`: the features that this rank wants [m, H], and which they are [m].

    patches [N, V] are those of all frames; wanted_by [M] (on the CPU) is the rank of the group that wants each feature.
    A feature goes to exactly one rank and its gradient comes back from there, so that the encoder's gradients, summed
    over the group, are those of one process that encodes everything.
    """
    merge = encoder.vision.merge**2
    sizes = [height * width for height, width in frames]
    tokens = [size // merge for size in sizes]
    costs = [frame_cost(frame, encoder.vision) for frame in frames]
    plan = plan_exchange(costs, tokens, wanted_by, group.rank(), group.size())
    rows = torch.split(patches, sizes) if frames else ()
    mine = torch.cat([rows[i] for i in plan.frames]) if plan.frames else patches[:0]
    made = encode(encoder, mine, [frames[i] for i in plan.frames])
    if not frames:  # nobody has anything to send
        return made, plan.received.to(made.device)
    sent = made.index_select(0, plan.order.to(made.device))
    got: torch.Tensor = tensor_parallel.all_to_all(group, sent, plan.receives, plan.sends)
    return got, plan.received.to(made.device)


class _GatherRagged(torch.autograd.Function):
    """Ranks' rows of different number, one behind the other.

    What follows is computed equally by every rank of the group, so each holds the whole gradient already and keeps the
    rows of its own: no communication, and no sum.
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


def gather_ragged(mine: torch.Tensor, counts: list[int], group: Any) -> torch.Tensor:
    """[counts[r], H] on each rank r of `group` -> [sum of counts, H] on all (see _GatherRagged)."""
    if group.size() == 1 or not sum(counts):
        return mine
    return _GatherRagged.apply(mine, counts, group)  # type: ignore[no-untyped-call,no-any-return]
