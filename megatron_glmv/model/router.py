"""The sigmoid router with loss-free balancing and a balance loss that does not depend on the layout.

Shapes: T tokens of this rank, E experts. Paper: arXiv 2507.01006 section 3.2; loss-free balancing: arXiv 2408.15664.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter


class BalancedRouter(TopKRouter):
    """megatron-core's router with three corrections.

    1. Padding is left out of the counts that move the expert bias (there the mask is broadcast against the expert
       axis).
    2. The counts stay fp32 when the module is cast to bf16, where 257 tokens would round to 256.
    3. The balance loss is scaled so that its gradient is `aux_loss` x (mean over the packs of the global batch),
       whatever the layout. megatron-core scales it by the tokens of one tensor x context rank when losses are
       normalised by tokens, so that its weight is divided by tensor x context (tests/dist/test_traps.py).

    `balance_scale` is the global loss weight divided by the packs of the global batch, set by the trainer each step:
    all gradients are divided by the global loss weight at the end.
    """

    def __init__(self, config: Any, pg_collection: Any = None) -> None:
        super().__init__(config=config, pg_collection=pg_collection)
        self.balance_scale = 0.0
        self.balance_coefficient = float(config.glmv_balance_loss)

    def _maintain_float32_expert_bias(self) -> None:
        super()._maintain_float32_expert_bias()
        counts: torch.Tensor | None = self.local_tokens_per_expert
        if counts is not None and counts.dtype != torch.float32:
            self.local_tokens_per_expert: torch.Tensor = counts.float()

    def _apply_expert_bias(self, routing_map: torch.Tensor, padding_mask: torch.Tensor | None = None) -> None:
        """routing_map [T, E] bool, padding_mask [T] bool (True on padding). Evaluation and recomputation do not
        count."""
        if not self.enable_expert_bias or not torch.is_grad_enabled():
            return
        with torch.no_grad():
            if padding_mask is not None:
                routing_map = routing_map & ~padding_mask[:, None]
            self.local_tokens_per_expert += routing_map.sum(dim=0)

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        probs, routing_map = super().routing(logits, padding_mask)
        if self.training and torch.is_grad_enabled() and self.balance_coefficient:
            loss = self._balance_loss(logits.view(-1, self.num_experts), routing_map, padding_mask)
            probs = MoEAuxLossAutoScaler.apply(probs, loss * (self.balance_coefficient * self.balance_scale))
        return probs, routing_map

    def _balance_loss(
        self, logits: torch.Tensor, routing_map: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """E x sum_i f_i P_i of one pack: f_i the share of routed slots expert i got, P_i its mean normalised score.

        f and the token count are summed over the ranks that hold parts of the pack; each rank returns the part of P
        that its own tokens give, so that the ranks' losses add up to the pack's and gradients are exact without
        communication.
        """
        scores = torch.sigmoid(logits.float())
        scores = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
        valid = torch.ones_like(scores[:, 0]) if padding_mask is None else (~padding_mask.reshape(-1)).float()
        with torch.no_grad():
            counts = torch.cat([(routing_map * valid[:, None]).sum(dim=0), valid.sum()[None]])
            if self.tp_cp_group.size() > 1:
                dist.all_reduce(counts, group=self.tp_cp_group)
            tokens = counts[-1].clamp(min=1.0)
            share = counts[:-1] / (tokens * self.topk)
        experts: int = self.num_experts
        return experts * torch.dot(share, (scores * valid[:, None]).sum(dim=0) / tokens)


def set_balance_scale(chunks: list[Any], scale: float) -> None:
    """Tells every router of the model what the balance loss of one pack weighs this step (see BalancedRouter)."""
    for chunk in chunks:
        for module in chunk.modules():
            if isinstance(module, BalancedRouter):
                module.balance_scale = scale
