"""Where a run computes: a GPU with NCCL, or CPU processes with gloo and stand-ins for what megatron-core takes for granted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_glmv.config.errors import ConfigError


@dataclass(frozen=True)
class Platform:
    name: str
    """cuda or cpu."""
    device: torch.device
    distributed_backend: str

    def install(self) -> None:
        """Makes megatron-core importable and runnable here. Before its first import; doing it again does nothing."""
        if self.name == "cpu":
            from megatron_glmv.platform.cpu import install

            install()


CPU = Platform("cpu", torch.device("cpu"), "gloo")
_cuda_available = torch.cuda.is_available  # the CPU stand-ins leave it alone; kept for clarity of what is asked


def select(name: str) -> Platform:
    """`cuda`, `cpu`, or `auto`: cuda where a GPU is usable. Raises ConfigError for cuda without one."""
    usable = _cuda_available()
    if name == "cuda" and not usable:
        raise ConfigError("platform", name, "no usable CUDA GPU on this machine", fix="platform=cpu")
    if name == "cpu" or not usable:
        return CPU
    return Platform("cuda", torch.device("cuda"), "nccl")
