"""The one place that knows DALI: loaded on first use, and only in processes that decode.

Importing this module imports no DALI. A process that used DALI must not fork afterwards: the child hangs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch


class Dali:
    """DALI's dynamic mode on one device, with the thread count that a decoder process has.

    `device` is DALI's word: cpu or gpu. Errors of a call surface as RuntimeError and lose that call's whole batch; the
    next call works.
    """

    def __init__(self, module: Any, device: torch.device, threads: int = 1) -> None:
        self.ndd = module
        self.device = "gpu" if device.type == "cuda" else "cpu"
        self.index = (device.index or 0) if device.type == "cuda" else None
        self.threads = threads
        self.codecs = frozenset({"vp8", "vp9", "mjpeg"})
        """Video codecs it can decode: those of its CPU wheel, and with a GPU those that the driver names."""
        if self.device == "gpu":
            self.codecs = self.codecs | {"h264", "hevc", "mpeg4"}

    def context(self) -> AbstractContextManager[Any]:
        """Surrounds every call; results must be taken out inside."""
        context: AbstractContextManager[Any] = self.ndd.EvalContext(num_threads=self.threads, device_id=self.index)
        return context

    def torch(self, tensor: Any) -> torch.Tensor:
        """A DALI tensor as a torch tensor that owns or shares the memory safely."""
        if self.device == "gpu":
            on_device: torch.Tensor = tensor.torch()
            return on_device
        return torch.from_numpy(np.asarray(tensor))


def load(device: torch.device, threads: int = 1) -> Dali | None:
    """DALI for a device, or None where it is not installed or cannot be loaded."""
    module = _module()
    return None if module is None else Dali(module, device, threads)


@cache
def _module() -> Any:
    try:
        import nvidia.dali.experimental.dynamic as ndd
    except (ImportError, OSError):  # not installed, or a shared library of it is missing
        return None
    return ndd
