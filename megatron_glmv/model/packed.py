"""Geometry of a pack in the forms that attention takes, whole or as one context-parallel rank's part of it.

Shapes: T tokens of a pack, S segments, L tokens of a segment, R context-parallel ranks.

Context parallelism cuts every segment into 2R equal chunks and gives rank r its chunks r and 2R - 1 - r, behind one
another, segment by segment: under a causal mask all ranks then have the same work. This is the split that Transformer
Engine's attention expects of packed tokens (`thd_get_partitioned_indices`), so both back ends see the same parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams


@dataclass(frozen=True)
class ContextSplit:
    """Who holds which token of a pack."""

    rank: int
    size: int
    """R."""
    order: torch.Tensor
    """[T] int64: the tokens of rank 0, then those of rank 1, ...; indices in the pack."""
    places: torch.Tensor
    """[T] int64: the place of each of the pack's tokens in `order`."""

    @property
    def mine(self) -> torch.Tensor:
        """[T / R] indices in the pack of this rank's tokens."""
        part = len(self.order) // self.size
        return self.order[self.rank * part : (self.rank + 1) * part]

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """This rank's part of something that has the pack's tokens on its last axis: [..., T] -> [..., T / R]."""
        return tokens if self.size == 1 else tokens.index_select(-1, self.mine.to(tokens.device))


def context_split(lengths: list[int], rank: int, size: int) -> ContextSplit:
    """The split of segments of these lengths (module docstring). Raises ValueError where one does not divide."""
    uneven = [length for length in lengths if length % (2 * size)]
    if size > 1 and uneven:
        raise ValueError(f"segments of {uneven} tokens cannot be cut into 2 x context = {2 * size} equal chunks")
    total = sum(lengths)
    if size == 1:
        return ContextSplit(rank, size, torch.arange(total), torch.arange(total))
    each = torch.tensor(lengths)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), each)
    offset = torch.arange(total) - (each.cumsum(0) - each)[segment]
    chunk = offset // (each // (2 * size))[segment]
    holder = torch.minimum(chunk, 2 * size - 1 - chunk)
    order = holder.argsort(stable=True)
    return ContextSplit(rank, size, order, order.argsort())


@dataclass(frozen=True)
class EqualSegments:
    """Segments of one length, which are computed together."""

    count: int
    length: int
    queries: torch.Tensor | None
    """[count x L / R] where this rank's queries of these segments are among its tokens; None: they are all it has."""
    keys: torch.Tensor | None
    """[count x L] where the keys of these segments, in natural order, are among the R ranks' tokens laid behind one
    another; None: all, as they are."""


class Segments:
    """The segments of a pack, grouped by length once per pack instead of once per layer."""

    def __init__(self, lengths: list[int], device: torch.device, split: ContextSplit | None = None) -> None:
        split = split or context_split(lengths, 0, 1)
        self.rank, self.ranks = split.rank, split.size
        self.groups: list[EqualSegments] = []
        self.inverse = torch.empty(0, dtype=torch.int64, device=device)
        """[T / R] where each query of this rank is in the groups' queries, laid behind one another."""
        each = torch.tensor(lengths, dtype=torch.int64)
        starts = each.cumsum(0) - each
        found = []
        for length in sorted(set(lengths) - {0}):
            members = starts[each == length]
            tokens = (members[:, None] + torch.arange(length)).flatten()
            places = split.places[tokens]
            part = len(split.order) // split.size
            queries = (places[places // part == split.rank] - split.rank * part).sort().values
            alone = len(set(lengths) - {0}) == 1
            found.append(queries)
            self.groups.append(
                EqualSegments(
                    count=len(members),
                    length=length,
                    queries=None if alone else queries.to(device),
                    keys=None if alone and split.size == 1 else places.to(device),
                )
            )
        if found:
            self.inverse = torch.cat(found).argsort().to(device)


@dataclass
class PackedSegments(PackedSeqParams):
    """THD parameters of the whole pack (Transformer Engine splits by itself), and what the torch back end needs."""

    segments: Segments = field(default_factory=lambda: Segments([], torch.device("cpu")))
    split: ContextSplit = field(default_factory=lambda: context_split([], 0, 1))


def packed_segments(cu_seqlens: torch.Tensor, context: tuple[int, int] = (0, 1)) -> PackedSegments:
    """cu_seqlens: [S + 1] int32 from 0 to T, on the CPU or the model's device. `context`: this rank's index and the
    number of context-parallel ranks."""
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
    longest = max(lengths)
    split = context_split(lengths, *context)
    return PackedSegments(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        segments=Segments(lengths, cu_seqlens.device, split),
        split=split,
    )
