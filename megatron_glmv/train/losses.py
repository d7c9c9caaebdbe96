"""Token losses to one number. Shapes: T tokens of a pack, S segments."""

from __future__ import annotations

import torch


def weighted_sum(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum_t w_t l_t in fp32, [T] and [T] -> []. Divided once, by the weight of the whole global batch, so that the loss
    and its gradient do not depend on how the batch was split into ranks and micro-batches."""
    return (losses.float() * weights).sum()


class FurtherLoss:
    """The loss of a prediction layer (model/prediction.py) beside the main one.

    Of a step's tokens: (sum_t w_t l_t + f sum_t v_t m_t) / sum_t w_t, with the main losses l and their weights w, the
    layer's losses m, weights v and factor f. One division for both keeps them independent of how the batch was split.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.reset()

    def reset(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)
        """sum v m and sum v of this rank's tokens since."""

    def add(self, losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """[T], [T] -> f sum_t v_t m_t."""
        total = weighted_sum(losses, weights)
        self.sums += torch.stack([total.detach(), weights.sum()]).double().cpu()
        return self.factor * total


def by_domain(losses: torch.Tensor, weights: torch.Tensor, domains: torch.Tensor, count: int) -> torch.Tensor:
    """[T], [T], domain of each token [T] in [0, count) -> [count, 2] float64: weighted loss and weight of each
    domain."""
    sums = torch.zeros(count, 2, dtype=torch.float64, device=losses.device)
    pairs = torch.stack([losses.double() * weights.double(), weights.double()], dim=-1)
    return sums.index_add(0, domains, pairs)
