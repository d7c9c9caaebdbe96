"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from megatron_glmv.config.schema import OptimConfig


def learning_rate(step: int, steps: int, optim: OptimConfig) -> float:
    """Rate of the update that makes step `step` (counted from 1) of `steps`: linear warm-up, then a cosine to
    `min_lr`."""
    if step <= optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    span = max(1, steps - optim.warmup_steps)
    done = min(1.0, (step - optim.warmup_steps) / span)
    return optim.min_lr + (optim.lr - optim.min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))
