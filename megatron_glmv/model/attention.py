"""Core attention of the torch layer spec: packed sequences, causal or full, and decoding with a key-value cache.

Shapes: T tokens of a pack, S query length, K key length, B batch, A query heads, G key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType


class CoreAttention(torch.nn.Module):
    """Stands where megatron-core has `DotProductAttention`, which refuses packed sequences, or TE's attention.

    No token attends across a segment boundary of a pack. Segments of equal length are computed together in one call, so
    that the cost is that of the segments (sum of squares), not of the pack.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str = "self",
        softmax_scale: float | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()
        if config.context_parallel_size > 1:
            raise NotImplementedError("the torch core attention does not split sequences over context parallel ranks")
        if config.attention_dropout:
            raise NotImplementedError("the torch core attention has no dropout")
        self.softmax_scale = softmax_scale
        self.attn_mask_type = attn_mask_type

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Packed: [T, A, D], [T, G, D] -> [T, A x D]. Otherwise [S, B, A, D], [K, B, G, D] -> [S, B, A x D]."""
        causal = (attn_mask_type or self.attn_mask_type) in (AttnMaskType.causal, AttnMaskType.padding_causal)
        if packed_seq_params is not None:
            return self._packed(query, key, value, causal, packed_seq_params.segments)
        if causal and query.shape[0] != key.shape[0]:
            raise ValueError(f"causal attention of {query.shape[0]} queries on {key.shape[0]} keys has no defined mask")
        query, key, value = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        context = self._attend(query, key, value, causal)
        return context.permute(2, 0, 1, 3).flatten(2)

    def _packed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, segments: Segments
    ) -> torch.Tensor:
        if segments.uniform:  # every segment has the same length: views, no copies
            count, length = segments.uniform
            return self._rows(query, key, value, count, length, causal)
        parts = []
        for index, count, length in segments.groups:
            rows = [t.index_select(0, index) for t in (query, key, value)]
            parts.append(self._rows(rows[0], rows[1], rows[2], count, length, causal))
        return torch.cat(parts).index_select(0, segments.inverse)

    def _rows(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, count: int, length: int, causal: bool
    ) -> torch.Tensor:
        """`count` segments of `length` tokens behind one another: [count x length, A, D] -> [count x length, A x D]."""
        q, k, v = (t.view(count, length, *t.shape[1:]).transpose(1, 2) for t in (query, key, value))
        return self._attend(q, k, v, causal).transpose(1, 2).reshape(count * length, -1)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
        """[B, A, S, D], [B, G, K, D] -> [B, A, S, D]."""
        repeat = query.shape[1] // key.shape[1]
        if repeat > 1:
            key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=self.softmax_scale)


class Segments:
    """The segments of a pack, grouped by length once per pack instead of once per layer."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        starts, total = [], 0
        for length in lengths:
            starts.append(total)
            total += length
        self.uniform: tuple[int, int] | None = (len(lengths), lengths[0]) if len(set(lengths)) == 1 else None
        self.groups: list[tuple[torch.Tensor, int, int]] = []
        order = []
        for length, members in self._by_length(lengths):
            index = torch.cat([torch.arange(starts[m], starts[m] + length) for m in members])
            order.append(index)
            self.groups.append((index.to(device), len(members), length))
        self.inverse = (
            torch.cat(order).argsort().to(device) if order else torch.empty(0, dtype=torch.int64, device=device)
        )

    @staticmethod
    def _by_length(lengths: list[int]) -> Iterator[tuple[int, list[int]]]:
        for length in sorted(set(lengths)):
            if length:
                yield length, [i for i, other in enumerate(lengths) if other == length]
