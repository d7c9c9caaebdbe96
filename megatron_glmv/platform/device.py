"""Where a run computes: a GPU with NCCL, or CPU processes with gloo and stand-ins for what megatron-core assumes."""

from __future__ import annotations

import warnings
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
        _quieten()
        if self.name == "cpu":
            from megatron_glmv.platform.cpu import install

            install()


CPU = Platform("cpu", torch.device("cpu"), "gloo")


def _quieten() -> None:
    """megatron-core warns at import and in every layer about TE, apex and names that torch has renamed: a screen a
    rank."""
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=r"megatron\.core\b")
        warnings.filterwarnings("ignore", category=category, module=r"torch\.distributed\.c10d_logger")
    # Warned about with stacklevel, as if from torch itself: gradients of leaves under the distributed optimizer.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf Tensor")


def select(name: str) -> Platform:
    """`cuda`, `cpu`, or `auto`: cuda where a GPU is usable. Raises ConfigError for cuda without one."""
    usable = torch.cuda.is_available()
    if name == "cuda" and not usable:
        raise ConfigError("platform", name, "no usable CUDA GPU on this machine", fix="platform=cpu")
    if name == "cpu" or not usable:
        return CPU
    return Platform("cuda", torch.device("cuda"), "nccl")
