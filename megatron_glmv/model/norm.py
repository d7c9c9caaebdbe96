"""RMSNorm for the torch layer spec. Shapes: H hidden size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


class RMSNorm(torch.nn.Module):
    """Computed in fp32 and cast back before the weight, as the GLM models do (Zhang & Sennrich, arXiv 1910.07467).

    megatron-core's `WrappedTorchNorm` refuses sequence parallelism. What makes it right is the mark on the weight:
    `finalize_model_grads` sums the gradients of marked parameters over the tensor-parallel group, because each of its
    ranks saw only its part of the sequence.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H]."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype) * self.weight
