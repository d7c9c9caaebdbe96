"""Names inside megatron-core's modules that have to be others without CUDA, TE and apex. Applied after its import."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from megatron_glmv.platform.fused_adam import FusedAdam
from megatron_glmv.platform.standins import StandIn


def maybe_move_tensor_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Split sizes become numpy only when they come from a GPU; gloo's all-to-all wants ints."""
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def gather_along_first_dim(
    input_: torch.Tensor, group: Any, output_split_sizes: Any = None, use_global_buffer: bool = False
) -> torch.Tensor:
    """[rows, ...] of each rank, behind one another. Ranks may have different numbers of rows, which gloo refuses to
    gather: they are filled up to the most of any rank, and cut again."""
    ranks = group.size()
    if ranks == 1:
        return input_
    sizes = [len(input_)] * ranks if output_split_sizes is None else [int(size) for size in output_split_sizes]
    most, rest = max(sizes), input_.shape[1:]
    if most == 0:
        return input_
    gathered = input_.new_empty(ranks * most, *rest)
    dist.all_gather_into_tensor(gathered, _filled(input_, most), group=group)
    if min(sizes) == most:
        return gathered
    return torch.cat([part[:size] for part, size in zip(torch.split(gathered, most), sizes, strict=True)])


def reduce_scatter_along_first_dim(
    input_: torch.Tensor, group: Any, input_split_sizes: Any = None, use_global_buffer: bool = False
) -> torch.Tensor:
    """The sum over ranks of this rank's rows; the counterpart of `gather_along_first_dim`."""
    ranks = group.size()
    if ranks == 1:
        return input_
    if input_split_sizes is None and len(input_) % ranks:
        raise ValueError(f"{len(input_)} rows cannot be scattered evenly over {ranks} ranks")
    sizes = [len(input_) // ranks] * ranks if input_split_sizes is None else [int(size) for size in input_split_sizes]
    most = max(sizes)
    if most == 0:
        return input_
    parts = torch.cat([_filled(part, most) for part in torch.split(input_, sizes)])
    summed = input_.new_empty(most, *input_.shape[1:])
    dist.reduce_scatter_tensor(summed, parts, group=group)
    return summed[: sizes[group.rank()]]


def _filled(rows: torch.Tensor, count: int) -> torch.Tensor:
    missing = count - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows.contiguous()


def stand_ins() -> list[StandIn]:
    moe = "megatron.core.transformer.moe"
    rng = "tensor_parallel/random.py: torch.cuda's lazy initialisation, which raises"
    splits = "transformer/moe/token_dispatcher.py: split sizes as numpy"
    ragged = "tensor_parallel/mappings.py: all_gather and reduce_scatter of unequal parts, which NCCL alone has"
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
        StandIn("megatron.core.tensor_parallel.mappings._gather_along_first_dim", gather_along_first_dim, ragged),
        StandIn(
            "megatron.core.tensor_parallel.mappings._reduce_scatter_along_first_dim",
            reduce_scatter_along_first_dim,
            ragged,
        ),
        StandIn("megatron.core.optimizer.Adam", FusedAdam, adam),
        StandIn("megatron.core.optimizer.USING_PYTORCH_OPTIMIZER", False, adam),
        StandIn("megatron.core.optimizer.distrib_optimizer.Adam", FusedAdam, adam),
        StandIn("megatron.core.optimizer.distrib_optimizer.HAVE_APEX_OR_TE", True, adam),
        StandIn("megatron.core.optimizer.distrib_optimizer.USING_APEX_OPTIMIZER", True, adam),
    ]
