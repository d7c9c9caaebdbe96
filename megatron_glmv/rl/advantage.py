"""Advantages of a group of answers to one prompt. Shapes: G answers of the group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SAME = 1e-6
"""Rewards of a group that lie closer together than this teach nothing."""


def valid(rewards: Sequence[float]) -> bool:
    """Whether the answers of a group differ in reward: all right or all wrong gives no gradient (arXiv 2507.01006,
    section 5.3, "not valid sample"; arXiv 2503.14476 calls the same dynamic sampling)."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > SAME


def group_advantages(rewards: Sequence[float], *, by_deviation: bool = True) -> Floats:
    """[G] -> [G]: (r - mean) / standard deviation of the group (GRPO, arXiv 2402.03300, section 4.1.2), the deviation
    that of a population. `by_deviation=False` leaves the division out (arXiv 2503.20783; arXiv 2508.06471 does so for
    agents). A group that is not `valid` has advantage 0 exactly."""
    values = np.asarray(rewards, dtype=np.float64)
    if not valid(rewards):
        return np.zeros_like(values)
    centred: Floats = values - values.mean()
    return centred / float(values.std()) if by_deviation else centred


def response_weights(trained: NDArray[np.bool_], mean: str) -> Floats:
    """Loss weights of the tokens of one answer, [L] bool -> [L], for a loss that is divided by `batch_weight`.

    sample: every answer weighs 1, its tokens share it (arXiv 2507.01006, section 5.3: "averaging tokens' loss within
    each sample, then averaging across samples"). token: every token weighs 1 (arXiv 2503.14476). Tokens that were
    inserted, not sampled, weigh nothing.
    """
    count = int(trained.sum())
    weights = trained.astype(np.float64)
    return weights / count if mean == "sample" and count else weights


def batch_weight(trained: Sequence[NDArray[np.bool_]], mean: str) -> float:
    """What the loss sum of the whole batch is divided by: its answers, or its trained tokens. Answers without advantage
    count, though they need not be computed."""
    counts = [int(mask.sum()) for mask in trained]
    return float(sum(count > 0 for count in counts) if mean == "sample" else sum(counts))
