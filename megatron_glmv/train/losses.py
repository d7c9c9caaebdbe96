"""Token losses to one number. Shapes: T tokens of a pack, S segments."""

from __future__ import annotations

import torch


def weighted_sum(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum_t w_t l_t in fp32, [T] and [T] -> []. Divided once, by the weight of the whole global batch, so that the loss
    and its gradient do not depend on how the batch was split into ranks and micro-batches."""
    return (losses.float() * weights).sum()


def by_domain(losses: torch.Tensor, weights: torch.Tensor, domains: torch.Tensor, count: int) -> torch.Tensor:
    """[T], [T], domain of each token [T] in [0, count) -> [count, 2] float64: weighted loss and weight of each
    domain."""
    sums = torch.zeros(count, 2, dtype=torch.float64, device=losses.device)
    pairs = torch.stack([losses.double() * weights.double(), weights.double()], dim=-1)
    return sums.index_add(0, domains, pairs)
