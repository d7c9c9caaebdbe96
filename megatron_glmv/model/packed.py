"""Geometry of a pack in the form megatron-core's attention takes it. Shapes: T tokens, S segments."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_glmv.model.attention import Segments


@dataclass
class PackedSegments(PackedSeqParams):
    """THD parameters, and the same segments grouped by length for the torch core attention."""

    segments: Segments = field(default_factory=lambda: Segments([], torch.device("cpu")))


def packed_segments(cu_seqlens: torch.Tensor) -> PackedSegments:
    """cu_seqlens: [S + 1] int32 from 0 to T, on the CPU or the model's device."""
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
    longest = max(lengths)
    return PackedSegments(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        segments=Segments(lengths, cu_seqlens.device),
    )
