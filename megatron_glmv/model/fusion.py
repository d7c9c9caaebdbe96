"""Visual features into the token embeddings. Shapes: B batch, T tokens, H hidden, M visual tokens."""

from __future__ import annotations

import torch


def fuse(embeddings: torch.Tensor, features: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Replaces the embeddings of the placeholders.

    embeddings [T, B, H]; features [M, H]; positions [M]: b x T + t of each visual token's placeholder. -> [T, B, H].
    Raises ValueError when the numbers of features and placeholders differ: that is a sample whose grids do not belong
    to its tokens, and guessing would train on it.
    """
    if len(features) != len(positions):
        raise ValueError(f"{len(positions)} placeholders in the batch, but {len(features)} visual features")
    tokens, batch, hidden = embeddings.shape
    flat = embeddings.transpose(0, 1).reshape(batch * tokens, hidden)
    fused = flat.index_copy(0, positions, features.to(flat.dtype))
    return fused.view(batch, tokens, hidden).transpose(0, 1).contiguous()
