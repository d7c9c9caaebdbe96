"""What a sample costs in training: floating-point operations of one forward pass, by the sizes that decide them.

Formulas count a multiply-add as two. Decoder: dense layers and experts per token, the output layer per token, and
causal attention per pair of tokens of one sample. A prediction layer is one more decoder layer behind a projection of
two widths to one, and goes through the output layer again. Vision encoder: dense layers and attention inside one frame
pair, per patch and per pair of patches; the merger per visual token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_glmv.config.schema import ModelConfig


@dataclass(frozen=True)
class Cost:
    """Coefficients of one model."""

    token: float
    """FLOPs of a token, attention scores apart."""
    pair: float
    """FLOPs of attention for each pair of tokens, half of which are masked."""
    patch: float
    """FLOPs of a patch, attention scores apart."""
    patch_pair: float
    """FLOPs of attention for each pair of patches of one temporal patch."""

    @classmethod
    def of(cls, model: ModelConfig) -> Cost:
        text, vision = model.text, model.vision
        query, keys = text.heads * text.head_dim, 2 * text.kv_heads * text.head_dim
        attention = 2 * text.hidden * (2 * query + keys)
        dense = 6 * text.hidden * text.ffn
        output = 2 * text.hidden * text.vocab
        last = attention + dense
        layers = text.layers * last
        if text.moe is not None:
            moe = text.moe
            sparse = 6 * text.hidden * (moe.topk * moe.ffn + moe.shared_ffn) + 2 * text.hidden * moe.experts
            last = attention + sparse
            layers = text.layers * attention + moe.first_dense * dense + (text.layers - moe.first_dense) * sparse
        further = model.mtp.layers * (last + 4 * text.hidden**2 + output)
        block = 8 * vision.hidden**2 + 6 * vision.hidden * vision.ffn
        out = text.hidden
        merger = 2 * vision.hidden * out + (2 * out * out + 6 * out * vision.merger_ffn) / vision.merge**2
        return cls(
            token=layers + output + further,
            pair=2 * (text.layers + model.mtp.layers) * query,
            patch=vision.depth * block + 2 * vision.patch_values * vision.hidden + merger,
            patch_pair=4 * vision.depth * vision.hidden,
        )

    def samples(
        self, tokens: NDArray[np.int64], patches: NDArray[np.int64], pictures: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """[n] FLOPs of n samples. The patches of a sample count as spread evenly over its pictures (images, and
        temporal patches of videos)."""
        inside = patches * patches / np.maximum(pictures, 1)
        total = self.token * tokens + self.pair * tokens * tokens + self.patch * patches + self.patch_pair * inside
        return np.asarray(total, np.float64)
