"""What the trainer minimises for a micro-batch of answers, and what is measured on the way.

Shapes: T tokens of a pack, R context-parallel ranks, S segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_glmv.config.rl import RLConfig
from megatron_glmv.rl.batch import Targets
from megatron_glmv.rl.policy_loss import clipped_loss, sequence_log_ratio, truncated_importance
from megatron_glmv.train.step import BatchPart

MEASURED = ("loss", "tokens", "clipped_low", "clipped_high", "surprise", "drift", "importance")
"""Sums over tokens, in the order in which they are collected."""


@dataclass(frozen=True)
class Drift:
    """How far the engine and the training model disagree on an answer."""

    answer: str
    mean: float
    """Mean absolute difference of log-probabilities over its tokens."""


class PolicyLoss:
    """The `reduce` of train/step.py. `old` log-probabilities are those that `remember` saw, else the present ones: then
    the ratio is 1 and its gradient that of the policy gradient."""

    def __init__(self, config: RLConfig, targets: Mapping[tuple[str, ...], Targets], context: Any) -> None:
        self.config, self.targets, self.context = config, targets, context
        self.old: dict[tuple[str, ...], torch.Tensor] = {}
        self.drifts: list[Drift] = []
        """Of the pass that is running; cleared by whoever reads them."""

    def remember(self, part: BatchPart, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps this rank's log-probabilities before the first update. For a pass without gradients."""
        logprobs = -losses.detach().float()
        self.old[part.sample_ids] = logprobs
        self._measure(part, logprobs, self._of(part, self.targets[part.sample_ids].rollout_logprobs, losses))
        return losses.sum(), torch.zeros(len(MEASURED), dtype=torch.float64, device=losses.device)

    def __call__(self, part: BatchPart, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """losses [T / R]: minus the log-probability of each label."""
        config, targets = self.config, self.targets[part.sample_ids]
        weights = part.loss_weights.to(losses.device)
        advantages = self._of(part, targets.advantages, losses)
        rollout = self._of(part, targets.rollout_logprobs, losses)
        logprobs = -losses.float()
        old = self.old.get(part.sample_ids, logprobs.detach())
        log_ratio = logprobs - old
        if config.ratio == "sequence":
            log_ratio = self._of_sequences(part, log_ratio, weights)
        loss, clipped = clipped_loss(log_ratio, advantages, config.clip_low, config.clip_high)
        importance = torch.ones_like(loss)
        if config.tis_cap is not None:
            importance = truncated_importance(old, rollout, config.tis_cap)
        total = (loss * importance * weights).sum()
        with torch.no_grad():
            trained = weights > 0
            drift = self._measure(part, logprobs.detach(), rollout)
            values = (
                total,
                trained.sum(),
                (clipped & trained & (advantages < 0)).sum(),
                (clipped & trained & (advantages > 0)).sum(),
                -(logprobs * trained).sum(),
                drift,
                (importance * trained).sum(),
            )
            return total, torch.stack([value.detach().double() for value in values])

    def _of(self, part: BatchPart, of_pack: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """[T] -> this rank's tokens [T / R]."""
        return of_pack[part.tokens].to(like.device)

    def _by_segment(self, part: BatchPart, values: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
        """Sum of a value over the trained tokens of each sample, and their number, on all context ranks: [S, 2]."""
        pairs = torch.stack([values.double() * trained, trained.double()], dim=-1)
        sums = torch.zeros(len(part.cu_seqlens) - 1, 2, dtype=torch.float64, device=values.device)
        sums = sums.index_add(0, part.segments.to(values.device), pairs)
        if self.context.size() > 1:
            dist.all_reduce(sums, group=self.context)
        return sums

    def _of_sequences(self, part: BatchPart, log_ratio: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        sums = self._by_segment(part, log_ratio.detach(), weights > 0).to(log_ratio.dtype)
        return sequence_log_ratio(log_ratio, sums[:, 0], sums[:, 1], part.segments.to(log_ratio.device))

    def _measure(self, part: BatchPart, logprobs: torch.Tensor, rollout: torch.Tensor) -> torch.Tensor:
        """Sum of the differences on this rank; each answer's mean goes to `drifts`."""
        trained = part.loss_weights.to(logprobs.device) > 0
        difference = (logprobs - rollout).abs()
        sums = self._by_segment(part, difference, trained).cpu()
        for key, (total, count) in zip(part.sample_ids, sums.tolist(), strict=False):
            if count:
                self.drifts.append(Drift(key, total / count))
        return (difference * trained).sum()
