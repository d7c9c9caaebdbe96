"""Attention: rotary angles of packed tokens, and the torch layer spec's core (packed sequences, context parallelism).

Shapes: T tokens of a pack, R context-parallel ranks, S query length, K key length, B batch, A query heads, G key-value
heads, D head width, F rotary frequencies.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from torch.nn.attention.bias import causal_lower_right

from megatron_glmv.model.packed import EqualSegments, Segments


class PackedSelfAttention(SelfAttention):
    """megatron-core's, which of packed tokens takes the angles as they are: one for each token that this rank holds.

    There angles are cut again by sample and context-parallel rank in every layer, with a wait for the GPU for every
    sample; and angles that were cut already would restart in every sample, which is wrong beside images.
    """

    _angles: torch.Tensor | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        rotary_pos_emb: Any = None,
        packed_seq_params: Any = None,
        **kwargs: Any,
    ) -> Any:
        """rotary_pos_emb of packed tokens: [T / R, 1, 1, 2F]."""
        if packed_seq_params is not None:
            self._angles, rotary_pos_emb = rotary_pos_emb, None
        try:
            return super().forward(
                hidden_states, *args, rotary_pos_emb=rotary_pos_emb, packed_seq_params=packed_seq_params, **kwargs
            )
        finally:
            self._angles = None

    def get_query_key_value_tensors(self, *args: Any, **kwargs: Any) -> Any:
        made = super().get_query_key_value_tensors(*args, **kwargs)
        if self._angles is None:
            return made
        query, key, *rest = made
        rotated = [
            apply_rotary_pos_emb(t, self._angles, config=self.config, cp_group=self.pg_collection.cp)
            for t in (query, key)
        ]
        return (*rotated, *rest)


class CoreAttention(torch.nn.Module):
    """Stands where megatron-core has `DotProductAttention`, which refuses packed sequences, or TE's attention.

    No token attends across a segment boundary of a pack. Segments of equal length are computed together in one call, so
    that the cost is that of the segments (sum of squares), not of the pack. Under context parallelism keys and values
    are gathered from all ranks (the backward pass is a reduce-scatter) and this rank's two chunks of each segment
    attend to what lies before them: the same sums as on one rank. Their split: model/packed.py.
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
        if config.attention_dropout:
            raise NotImplementedError("the torch core attention has no dropout")
        self.softmax_scale = softmax_scale
        self.attn_mask_type = attn_mask_type
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None

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
        """Packed: [T / R, A, D], [T / R, G, D] -> [T / R, A x D]. Otherwise [S, B, A, D], [K, B, G, D] ->
        [S, B, A x D]."""
        causal = (attn_mask_type or self.attn_mask_type) in (AttnMaskType.causal, AttnMaskType.padding_causal)
        if packed_seq_params is not None:
            return self._packed(query, key, value, causal, packed_seq_params.segments)
        if self.context_group is not None:
            raise ValueError("only packed sequences are split over context-parallel ranks")
        if causal and query.shape[0] != key.shape[0]:
            raise ValueError(f"causal attention of {query.shape[0]} queries on {key.shape[0]} keys has no defined mask")
        query, key, value = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        context = self._attend(query, key, value, causal)
        return context.permute(2, 0, 1, 3).flatten(2)

    def _packed(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, segments: Segments
    ) -> torch.Tensor:
        if segments.ranks > 1:
            if not causal:
                raise ValueError("context parallelism splits segments for a causal mask only")
            both = torch.cat([key, value], dim=-1)  # one message instead of two
            both = tensor_parallel.gather_from_sequence_parallel_region(both, True, self.context_group)
            key, value = both.tensor_split(2, dim=-1)
        parts = []
        for alike in segments.groups:
            q, k, v = _rows(query, alike.queries), _rows(key, alike.keys), _rows(value, alike.keys)
            parts.append(self._alike(q, k, v, alike, segments, causal))
        return parts[0] if len(parts) == 1 else torch.cat(parts).index_select(0, segments.inverse)

    def _alike(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        alike: EqualSegments,
        segments: Segments,
        causal: bool,
    ) -> torch.Tensor:
        """Segments of one length behind one another: [count x L / R, A, D], [count x L, G, D] -> [count x L / R,
        A x D]."""
        q, k, v = (t.view(alike.count, -1, *t.shape[1:]).transpose(1, 2) for t in (query, key, value))
        if segments.ranks == 1:
            context = self._attend(q, k, v, causal)
        else:
            chunk = alike.length // (2 * segments.ranks)
            ends = [chunk * (i + 1) for i in (segments.rank, 2 * segments.ranks - 1 - segments.rank)]
            halves = zip(q.tensor_split(2, dim=2), ends, strict=True)
            context = torch.cat([self._attend(half, k[:, :, :end], v[:, :, :end], causal) for half, end in halves], 2)
        return context.transpose(1, 2).reshape(len(query), -1)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
        """[B, A, S, D], [B, G, K, D] -> [B, A, S, D]. Causal: the last query sees the last key."""
        repeat = query.shape[1] // key.shape[1]
        if repeat > 1:
            key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        mask = None
        if causal and query.shape[2] != key.shape[2]:
            mask, causal = causal_lower_right(query.shape[2], key.shape[2]), False
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=self.softmax_scale)


def _rows(tokens: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    return tokens if index is None else tokens.index_select(0, index)
