"""Visual features into the token embeddings.

Shapes: B batch, T tokens of the sequence, R context-parallel ranks, P tensor-parallel ranks, t tokens of the sequence
that this rank embeds (T / R, or T / R / P under sequence parallelism), H hidden, M visual tokens, m those among t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_glmv.model.packed import ContextSplit


@dataclass(frozen=True)
class Landing:
    """Where each visual token of a batch is fused."""

    wanted_by: torch.Tensor
    """[M] int64 index in the tensor x context group (tensor fastest) of one rank whose tokens hold the placeholder."""
    rows: torch.Tensor
    """[M] int64 b x t + i: batch entry and index of the placeholder among the tokens that rank embeds."""


def landing(
    positions: torch.Tensor, tokens: int, split: ContextSplit | None, tensor: int, sequence_parallel: bool
) -> Landing:
    """positions [M], on the CPU: b x T + the placeholder's index in the whole sequence of T = `tokens` tokens.

    Without sequence parallelism every tensor rank embeds all T / R tokens; each of them then asks for 1/P of the
    features, which they share afterwards.
    """
    batch, token = positions // tokens, positions % tokens
    place = token if split is None else split.places[token]
    held = tokens // (1 if split is None else split.size)
    context, within = place // held, place % held
    part = -(-held // tensor)
    wanted_by = context * tensor + within // part
    rows = batch * part + within % part if sequence_parallel else batch * held + within
    return Landing(wanted_by, rows)


def fuse(embeddings: torch.Tensor, features: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Replaces the embeddings of the placeholders.

    embeddings [t, B, H]; features [m, H]; positions [m]: b x t + i of each visual token's placeholder. -> [t, B, H].
    Raises ValueError when the numbers of features and placeholders differ: that is a sample whose grids do not belong
    to its tokens, and guessing would train on it.
    """
    if len(features) != len(positions):
        raise ValueError(f"{len(positions)} placeholders in the batch, but {len(features)} visual features")
    tokens, batch, hidden = embeddings.shape
    flat = embeddings.transpose(0, 1).reshape(batch * tokens, hidden)
    fused = flat.index_copy(0, positions, features.to(flat.dtype))
    return fused.view(batch, tokens, hidden).transpose(0, 1).contiguous()
