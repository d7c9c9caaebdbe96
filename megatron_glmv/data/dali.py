"""The one place that knows DALI: loaded on first use, and only in processes that decode.

Importing this module imports no DALI. A process that used DALI must not fork afterwards: the child hangs.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch

from megatron_glmv.data.nvdec import Nvdec, ask

logger = logging.getLogger(__name__)

CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
"""Video codecs that the CPU back end of DALI's wheel decodes."""


class Dali:
    """DALI's dynamic mode on one device, with the thread count that a decoder process has.

    `device` is DALI's word: cpu or gpu. `nvdec` says which videos go to the GPU; None on the CPU. Errors of a call
    surface as RuntimeError and lose that call's whole batch; the next call works.
    """

    def __init__(self, module: Any, device: torch.device, threads: int = 1, nvdec: Nvdec | None = None) -> None:
        self.ndd = module
        self.device = "gpu" if device.type == "cuda" else "cpu"
        self.index = (device.index or 0) if device.type == "cuda" else None
        self.threads = threads
        self.nvdec = nvdec
        self.name = "dali_gpu" if self.device == "gpu" else "dali"
        """What a sample says that it was decoded by."""

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


def load(device: torch.device, threads: int = 1) -> tuple[Dali, ...]:
    """DALI's back ends for a device, the one to try first in front: the GPU's and the CPU's, or the CPU's alone.

    Empty where DALI is not installed or cannot be loaded.
    """
    module = _module()
    if module is None:
        return ()
    on_cpu = Dali(module, torch.device("cpu"), threads)
    if device.type != "cuda":
        return (on_cpu,)
    nvdec = ask(device.index or 0)
    if nvdec.reason:
        logger.warning("videos are decoded on the CPU: %s", nvdec.reason)
    return Dali(module, device, threads, nvdec), on_cpu


@cache
def _module() -> Any:
    try:
        import nvidia.dali.experimental.dynamic as ndd
    except (ImportError, OSError):  # not installed, or a shared library of it is missing
        return None
    return ndd
