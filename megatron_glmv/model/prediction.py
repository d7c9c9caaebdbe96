"""Multi-token prediction: one more decoder layer behind the last, which predicts the token behind the next one.

    x_t = W [norm(e_(t+1)); norm(h_t)]      y_t = norm(layer(x)_t)      logits of token t+2 = head(y_t)

h_t is what the output layer gets of token t, e the token embedding, head the output layer; both are the model's own
(arXiv 2412.19437, section 2.2; GLM-4.5 has one such layer, arXiv 2508.06471, section 2.1). The layer attends within a
sample, at the positions of h_t.

At a placeholder of an image e is the placeholder's own embedding, not the picture's feature. Nothing that is learned
misses the feature: where token t+1 is a placeholder, token t+2 is another one or the mark behind the picture, which is
no target; and whatever comes later sees the feature in h_(t+1). The features would have to travel to the last pipeline
stage, and engines that draft with this layer embed the token too.

Shapes: B batch (1 for packs), T tokens of a pack, S segments, R context-parallel ranks, P tensor-parallel ranks under
sequence parallelism (else 1), H hidden, W vocabulary, K rows of a routing mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer

PREDICTION = "language.mtp."
"""The layer's names and keys begin so."""


@dataclass(frozen=True)
class Following:
    """For each token of a pack [T] what it is taught about the token behind the next one."""

    input_ids: torch.Tensor
    """[T] int64: the next token of the sample, which is known to the layer."""
    labels: torch.Tensor
    """[T] int64: the token behind it."""
    loss_weights: torch.Tensor
    """[T] float32: that of predicting it, which is the weight that the next token has for the main loss."""
    absent: torch.Tensor
    """[T] bool: padding, and the last token of each sample, behind which there is no next one. All else is 0 there."""


def following(
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    loss_weights: torch.Tensor,
    padding: torch.Tensor,
    cu_seqlens: torch.Tensor,
) -> Following:
    """A whole pack's [T] fields (data/types.py), one token on; nothing crosses from one segment into another.

    Done before context parallelism cuts the pack: every rank has the tokens of all of it, so that none need travel.
    """

    def next_of(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[1:], values[:1]])

    last = torch.zeros_like(padding)
    last[cu_seqlens[1:].long() - 1] = True
    absent = padding | next_of(padding) | last
    return Following(
        input_ids=next_of(input_ids).masked_fill(absent, 0),
        labels=next_of(labels).masked_fill(absent, 0),
        loss_weights=next_of(loss_weights).masked_fill(absent, 0.0),
        absent=absent,
    )


@dataclass(frozen=True)
class Ahead:
    """What the layer is given of this context-parallel rank's tokens."""

    input_ids: torch.Tensor
    """[B, T/R]"""
    labels: torch.Tensor
    """[B, T/R]"""
    loss_weights: torch.Tensor
    """[T/R]"""
    padding_mask: torch.Tensor
    """[K, T/R]: the routing mask (model/router.py) with absent tokens as padding; [K, T/R/P] inside the model."""


class PredictionLayer(MultiTokenPredictionLayer):
    """megatron-core's layer with its parameters and keys, and the next tokens given.

    Its own forward pass rolls the tokens itself, sample by sample with messages between context-parallel ranks, up to
    the end of the aligned segment instead of the sample, and has no padding mask for the router.
    """

    def forward(
        self,
        hidden: torch.Tensor,
        embeddings: torch.Tensor,
        rotary_pos_emb: torch.Tensor,
        packed_seq_params: Any,
        padding_mask: torch.Tensor,
    ) -> torch.Tensor:
        """hidden, embeddings of the next tokens [T/R/P, B, H] -> [T/R/P, B, H], to be given to the output layer."""

        def run(hidden: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
            joined = self._concat_embeddings(hidden, embeddings)
            made, _ = self.transformer_layer(
                hidden_states=joined,
                attention_mask=None,
                rotary_pos_emb=rotary_pos_emb,
                packed_seq_params=packed_seq_params,
                padding_mask=padding_mask,
            )
            out: torch.Tensor = self._postprocess(made)
            return out

        if self.config.recompute_granularity == "full" and self.training:
            again: torch.Tensor = tensor_parallel.checkpoint(run, False, hidden, embeddings)
            return again
        return run(hidden, embeddings)


class LanguageModel(GPTModel):
    """The decoder. With a prediction layer, and told what lies ahead, it gives that layer's losses too."""

    _ahead: Ahead | None = None

    def forward(self, *args: Any, ahead: Ahead | None = None, **kwargs: Any) -> torch.Tensor:
        """As GPTModel's; with `ahead` losses are [2B, T/R]: those of the next tokens, then those of the ones behind."""
        self._ahead = ahead
        try:
            made: torch.Tensor = super().forward(*args, **kwargs)
            return made
        finally:
            self._ahead = None

    def _postprocess(self, hidden_states: torch.Tensor, **given: Any) -> torch.Tensor:
        if not self.mtp_process:
            made: torch.Tensor = super()._postprocess(hidden_states=hidden_states, **given)
            return made
        labels, ahead = given["labels"], self._ahead
        if labels is None:
            logits, _ = self.output_layer(hidden_states, runtime_gather_output=given["runtime_gather_output"])
            return logits.transpose(0, 1).contiguous()  # type: ignore[no-any-return]
        losses = [self._losses(hidden_states, labels)]
        if ahead is not None:
            (layer,) = self.mtp.layers
            predicted = layer(
                hidden_states,
                self.embedding(input_ids=ahead.input_ids, position_ids=None),
                given["rotary_pos_emb"],
                given["packed_seq_params"],
                ahead.padding_mask,
            )
            losses.append(self._losses(predicted, ahead.labels))
        return torch.cat(losses)

    def _losses(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[T/R/P, B, H], [B, T/R] -> [B, T/R]."""
        logits, _ = self.output_layer(hidden)
        losses: torch.Tensor = self.compute_language_model_loss(labels, logits)
        return losses
