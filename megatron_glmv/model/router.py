"""The sigmoid router with loss-free balancing, and a balance loss for each sample of a pack that does not depend on the
layout.

Shapes: T tokens of this rank, E experts, S segments of a pack (with room up to a power of two), R rows of a routing
mask. Papers: arXiv 2507.01006, section 3.2 (bias rate 1e-3, balance loss 1e-4 per sequence); loss-free balancing:
arXiv 2408.15664; sequence-wise balance loss: arXiv 2412.19437, equations 17 to 20.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter

from megatron_glmv.model.replay import Chooser


def segment_of_token(cu_seqlens: torch.Tensor) -> torch.Tensor:
    """[S + 1] -> [T] int64: 0 .. S - 1, the segment of each token of a pack."""
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
    return torch.arange(len(lengths), device=cu_seqlens.device).repeat_interleave(lengths)


def routing_mask(
    padding: torch.Tensor, segments: torch.Tensor, count: int, replayed: torch.Tensor | None = None
) -> torch.Tensor:
    """What a router has to know of each token: [R, T] bool, to be given to the model as its `padding_mask`.

    padding [T] bool, segments [T] int64 below `count`. Row 0 is the padding, the others are the binary digits of the
    segment, lowest first. megatron-core hands a router nothing beside hidden states but one boolean mask of tokens;
    that goes with its tokens through recomputation and pipeline schedules, which what is set on a module does not.
    Splitting tokens among ranks (sequence or context parallel) is slicing the last axis. `replayed` [rows, T]: choices
    of experts (replay.py), behind row 0.
    """
    digits = torch.arange(max(count - 1, 0).bit_length(), device=segments.device)
    rows = [padding[None]] if replayed is None else [padding[None], replayed]
    return torch.cat([*rows, (segments >> digits[:, None] & 1).bool()])


def read_routing_mask(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A router's end of `routing_mask`, [T, R] bool: padding [T], segments [T] int64, and room for all segments, a
    power of two (ranks have to agree on it, whatever segments they hold)."""
    powers = 2 ** torch.arange(mask.shape[1] - 1, device=mask.device)
    return mask[:, 0], (mask[:, 1:] * powers).sum(dim=1), 1 << (mask.shape[1] - 1)


def samples_in(padding: torch.Tensor, cu_seqlens: torch.Tensor) -> int:
    """Segments of a pack that hold a token: what is left over behind the samples is no sample."""
    return int(segment_of_token(cu_seqlens)[~padding].bincount().count_nonzero())


class BalancedRouter(TopKRouter):
    """megatron-core's router with four corrections.

    1. Padding is left out of the counts that move the expert bias (there the mask is broadcast against the expert
       axis).
    2. The counts stay fp32 when the module is cast to bf16, where 257 tokens would round to 256; fp32 counts without
       error to 2^24, and a global batch has 2^24 tokens for one expert only beyond 16 million tokens.
    3. The balance loss is that of each sample (`seq_aux_loss` sees a whole pack as one sequence).
    4. It is scaled so that its gradient is the coefficient times that of its mean over the samples of the global batch,
       whatever the layout and the packing. megatron-core scales it by the tokens of one tensor x context rank when
       losses are normalised by tokens, so that its weight is divided by tensor x context (tests/dist/test_traps.py).

    `balance_scale` is the global loss weight divided by the samples of the global batch, set by the trainer each step:
    all gradients are divided by the global loss weight at the end. `balance_share` is what the layer's own loss weighs
    beside the main one (less than 1 in a prediction layer only).
    """

    def __init__(self, config: Any, pg_collection: Any = None) -> None:
        super().__init__(config=config, pg_collection=pg_collection)
        self.router_replay = Chooser()
        self.balance_scale = 0.0
        self.balance_share = 1.0
        self.balance_coefficient = float(config.glmv_balance_loss)

    def _maintain_float32_expert_bias(self) -> None:
        super()._maintain_float32_expert_bias()
        counts: torch.Tensor | None = self.local_tokens_per_expert
        if counts is not None and counts.dtype != torch.float32:
            self.local_tokens_per_expert: torch.Tensor = counts.float()

    def _apply_expert_bias(self, routing_map: torch.Tensor, padding_mask: torch.Tensor | None = None) -> None:
        """routing_map [T, E] bool, padding_mask [T] bool (True on padding). Only a pass that keeps what its
        backward needs counts: not evaluation, and one of the two passes of recomputation."""
        if not self.enable_expert_bias or not torch.is_grad_enabled():
            return
        with torch.no_grad():
            if padding_mask is not None:
                routing_map = routing_map & ~padding_mask[:, None]
            self.local_tokens_per_expert += routing_map.sum(dim=0)

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [T, 1, E]; padding_mask [T, R] as megatron-core turns a routing mask round, or None. -> [T, E], [T,
        E]."""
        padding, segments, count = None, None, 1
        if padding_mask is not None:
            padding, segments, count = read_routing_mask(self.router_replay.take(padding_mask))
        probs, routing_map = super().routing(logits, padding)
        if self.training and torch.is_grad_enabled() and self.balance_coefficient:
            loss = self.balance_loss(logits.view(-1, self.num_experts), padding, segments, count)
            probs = MoEAuxLossAutoScaler.apply(probs, loss * (self.balance_coefficient * self.balance_scale))
        return probs, routing_map

    def balance_loss(
        self, logits: torch.Tensor, padding: torch.Tensor | None, segments: torch.Tensor | None, count: int
    ) -> torch.Tensor:
        """Sum over the samples of a pack of E x sum_i f_i P_i: f_i the share of the sample's slots that expert i gets
        by score alone (without the bias), P_i its mean normalised score.

        f and the token counts are summed over the ranks that hold parts of the pack; each rank returns the part of P
        that its own tokens give, so that the ranks' losses add up to the pack's and gradients are exact without
        communication. Segments without a token add nothing.
        """
        scores = torch.sigmoid(logits.float())
        scores = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
        valid = torch.ones_like(scores[:, :1]) if padding is None else (~padding).float()[:, None]
        if segments is None:
            segments = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

        def by_segment(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(count, values.shape[1]).index_add(0, segments, values * valid)

        with torch.no_grad():
            chosen = torch.zeros_like(scores).scatter(1, scores.topk(self.topk, dim=1).indices, 1.0)
            counts = by_segment(torch.cat([chosen, valid], dim=1))
            if self.tp_cp_group.size() > 1:
                dist.all_reduce(counts, group=self.tp_cp_group)
            lengths = counts[:, -1:].clamp(min=1.0)
            share = counts[:, :-1] / (lengths * self.topk)
        loss: torch.Tensor = self.num_experts * (share * by_segment(scores) / lengths).sum()
        return loss


def set_balance_scale(chunks: list[Any], scale: float) -> None:
    """Tells every router of the model what the balance loss of one sample weighs this step (see BalancedRouter)."""
    for chunk in chunks:
        for module in chunk.modules():
            if isinstance(module, BalancedRouter):
                module.balance_scale = scale * module.balance_share
