"""A process group between the first rank of training and the workers of rollout servers, and what is sent in it.

Imported on both sides: by a server's workers, in whose environment nothing of this package but these few files need
work. Imports torch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

ALIGNED = 16
"""Bytes: every tensor of a bucket starts at a multiple, so that it can be viewed in its own dtype."""


def listen(address: str, seconds: float) -> Any:
    """The store at which a group meets, on a free port; `store.port` says which."""
    return TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=seconds))


def meet(address: str, port: int, seconds: float) -> Any:
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds))


def open_group(store: Any, rank: int, world: int, device: torch.device, seconds: float) -> Any:
    """Blocks until all have come. gloo on CPU, NCCL on GPUs. Outside torch's default group, which the servers have of
    their own."""
    limit = timedelta(seconds=seconds)
    named = PrefixStore("glmv", store)
    if device.type != "cuda":
        return dist.ProcessGroupGloo(named, rank, world, limit)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    return dist.ProcessGroupNCCL(named, rank, world, options)


def flat_bytes(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All of them in one row of bytes, [bytes] uint8."""
    parts = []
    for tensor in tensors:
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        parts += [data, data.new_zeros(-len(data) % ALIGNED)]
    return torch.cat(parts)


def empty_bytes(dtypes: Sequence[str], shapes: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    return torch.empty(sum(_room(d, s) for d, s in zip(dtypes, shapes, strict=True)), dtype=torch.uint8, device=device)


def from_bytes(flat: torch.Tensor, dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The tensors that `flat_bytes` laid out, as views."""
    made, at = [], 0
    for dtype, shape in zip(dtypes, shapes, strict=True):
        size = _bytes(dtype, shape)
        made.append(flat[at : at + size].view(getattr(torch, dtype)).view(tuple(shape)))
        at += _room(dtype, shape)
    return made


def _bytes(dtype: str, shape: Sequence[int]) -> int:
    count = int(getattr(torch, dtype).itemsize)
    for size in shape:
        count *= size
    return count


def _room(dtype: str, shape: Sequence[int]) -> int:
    return -(-_bytes(dtype, shape) // ALIGNED) * ALIGNED


def send(group: Any, flat: torch.Tensor) -> Any:
    """Starts the broadcast from rank 0, or takes part in it; gives the work to wait for."""
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    return group.broadcast([flat], options)
