"""Stand-ins for what megatron-core asks of tensors: factories on "cuda", `.cuda()`, names of tensor types."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from megatron_glmv.platform.standins import StandIn

CPU = torch.device("cpu")
FACTORIES = ("tensor", "zeros", "ones", "empty", "empty_like")
_CUDA_NAMES = {torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16"}


def on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The factory, with device "cuda" sent to the CPU and page-locking dropped. Only factories: operations on existing
    tensors cost nothing extra."""

    @functools.wraps(factory)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return wrapped


def stand_ins() -> list[StandIn]:
    plain_type = torch.Tensor.type

    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None and self.dtype in _CUDA_NAMES:
            return f"torch.cuda.{_CUDA_NAMES[self.dtype]}Tensor"
        return plain_type(self, dtype, *args, **kwargs)

    literals = 'optimizer/, schedules.py, utils.py, moe_utils.py, dist_checkpointing/: device="cuda" in factories'
    table = [StandIn(f"torch.{name}", on_cpu(getattr(torch, name)), literals) for name in FACTORIES]
    return [
        *table,
        StandIn("torch.Tensor.type", type_, "optimizer/: t.type() compared with 'torch.cuda.BFloat16Tensor'"),
        StandIn(
            "torch.Tensor.cuda", lambda self, *_, **__: self, "distrib_optimizer.py, token_dispatcher.py: t.cuda()"
        ),
        StandIn("torch.Tensor.record_stream", lambda self, *_: None, "token_dispatcher.py: lifetime on a side stream"),
        StandIn("torch.Tensor.pin_memory", lambda self, *_: self, "dist_checkpointing/: page-locked copies"),
    ]
