"""The policy's loss, token by token. Shapes: T tokens, S segments (samples).

No KL and no entropy term (arXiv 2507.01006, section 5.3). All logarithms are natural.
"""

from __future__ import annotations

import torch


def clipped_loss(
    log_ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """[T], [T] -> loss [T] and whether the clip took the gradient away [T].

    -min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(log_ratio): PPO's surrogate (arXiv 1707.06347, equation 7) with
    an upper bound of its own ("clip-higher", arXiv 2503.14476, equation 10), which leaves unlikely tokens room to rise.
    """
    ratio = log_ratio.exp()
    plain = ratio * advantages
    bounded = ratio.clamp(1.0 - low, 1.0 + high) * advantages
    return -torch.minimum(plain, bounded), bounded < plain


def sequence_log_ratio(
    log_ratio: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor, segments: torch.Tensor
) -> torch.Tensor:
    """GSPO's ratio in its token form (arXiv 2507.18071, equation 14): every token of a sample has the value of the
    sample's mean log ratio and the gradient of its own.

    log_ratio [T] with gradient; sums, counts [S]: over all tokens of each sample, wherever they are; segments [T].
    """
    mean = (sums / counts.clamp(min=1.0))[segments].detach()
    return mean + log_ratio - log_ratio.detach()


def truncated_importance(old: torch.Tensor, rollout: torch.Tensor, cap: float) -> torch.Tensor:
    """min(exp(old - rollout), cap), without gradient: [T], [T] -> [T].

    Corrects for tokens that were drawn by an engine whose probabilities are not those of the training model (truncated
    importance sampling: Ionides 2008, doi 10.1198/106186008X320456; between engines: the `--tis-clip` of slime).
    old: log-probabilities of the training model before the update, rollout: those of the engine.
    """
    return (old - rollout).exp().clamp(max=cap).detach()
