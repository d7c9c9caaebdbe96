"""Names inside megatron-core's modules that have to be others without CUDA, TE and apex. Applied after its import."""

from __future__ import annotations

from typing import Any

import torch

from megatron_glmv.platform.fused_adam import FusedAdam
from megatron_glmv.platform.standins import StandIn


def maybe_move_tensor_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Split sizes become numpy only when they come from a GPU; gloo's all-to-all wants ints."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def stand_ins() -> list[StandIn]:
    moe = "megatron.core.transformer.moe"
    rng = "tensor_parallel/random.py: torch.cuda's lazy initialisation, which raises"
    splits = "transformer/moe/token_dispatcher.py: split sizes as numpy"
    adam = "optimizer/__init__.py, distrib_optimizer.py: the code paths of a FusedAdam"
    return [
        StandIn(
            "megatron.core.tensor_parallel.random._get_cuda_rng_state", lambda *_, **__: torch.get_rng_state(), rng
        ),
        StandIn(
            "megatron.core.tensor_parallel.random._set_cuda_rng_state",
            lambda state, *_, **__: torch.set_rng_state(state),
            rng,
        ),
        StandIn(
            f"{moe}.moe_utils.te_general_gemm", None, "moe_utils.py RouterGatingLinearFunction: a name only TE defines"
        ),
        StandIn(f"{moe}.moe_utils.maybe_move_tensor_to_cpu", maybe_move_tensor_to_cpu, splits),
        StandIn(f"{moe}.token_dispatcher.maybe_move_tensor_to_cpu", maybe_move_tensor_to_cpu, splits),
        StandIn("megatron.core.optimizer.Adam", FusedAdam, adam),
        StandIn("megatron.core.optimizer.USING_PYTORCH_OPTIMIZER", False, adam),
        StandIn("megatron.core.optimizer.distrib_optimizer.Adam", FusedAdam, adam),
        StandIn("megatron.core.optimizer.distrib_optimizer.HAVE_APEX_OR_TE", True, adam),
        StandIn("megatron.core.optimizer.distrib_optimizer.USING_APEX_OPTIMIZER", True, adam),
    ]
