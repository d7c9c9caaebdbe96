"""Loss on held-out packs, whole and by domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from megatron_glmv.train.feed import Feed
from megatron_glmv.train.losses import by_domain
from megatron_glmv.train.step import BatchPart, Trainer


def validation_losses(
    trainer: Trainer, feed: Feed, steps: int, domains: list[str], domain_of: Callable[[str], int]
) -> dict[str, float]:
    """`val_loss` and `val_loss/<domain>` over the next `steps` steps of `feed`. Collective; the same on every rank.

    `domain_of(sample id)` is an index into `domains`.
    """
    count = len(domains) + 1  # the last one is for padding
    sums = torch.zeros(count, 2, dtype=torch.float64, device=trainer.device)

    def reduce(part: BatchPart, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        segments = len(part.cu_seqlens) - 1
        known = [domain_of(key) for key in part.sample_ids]
        domains_of = torch.tensor(known + [count - 1] * (segments - len(known)), device=losses.device)
        found = by_domain(
            losses, part.loss_weights.to(losses.device), domains_of[part.segments.to(losses.device)], count
        )
        return losses.sum(), found

    trainer.start_reading_weights()
    for chunk in trainer.chunks:
        chunk.eval()
    with torch.no_grad():
        for _ in range(steps):
            collected = trainer.forward_backward(feed.next_step(), reduce, forward_only=True)
            if trainer.groups.tp.rank() == 0:
                sums = sum(collected, sums)
    for chunk in trainer.chunks:
        chunk.train()
    trainer.done_reading_weights()
    dist.all_reduce(sums)
    totals: list[Any] = sums.tolist()
    weight = sum(w for _, w in totals)
    losses = {"val_loss": sum(loss for loss, _ in totals) / weight} if weight else {}
    return losses | {f"val_loss/{name}": totals[i][0] / totals[i][1] for i, name in enumerate(domains) if totals[i][1]}
