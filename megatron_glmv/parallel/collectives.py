"""Agreement between ranks, and tensors sent from one rank of a group to the others."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist

_DTYPES = {str(t): t for t in (torch.uint8, torch.bool, torch.int32, torch.int64, torch.float32, torch.bfloat16)}


class RanksDisagreeError(RuntimeError):
    """Ranks hold different values of something that must be equal before training can start."""


def any_rank(flag: bool, group: Any, device: torch.device) -> bool:
    """True on every rank when any rank of the group says so."""
    value = torch.tensor([int(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=group)
    return bool(value.item())


def agree_on(name: str, value: str, group: Any = None) -> None:
    """Raises RanksDisagreeError on every rank when `value` is not the same everywhere, naming the ranks that differ."""
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, value, group=group)
    differ = [rank for rank, theirs in enumerate(everyone) if theirs != everyone[0]]
    if differ:
        raise RanksDisagreeError(
            f"{name} differs on ranks {differ}: {everyone[differ[0]]!r} instead of {everyone[0]!r}"
        )


def broadcast_tensors(
    tensors: dict[str, torch.Tensor] | None, source: int, group: Any, device: torch.device
) -> dict[str, torch.Tensor]:
    """Sends named tensors from global rank `source` to the ranks of `group`. A JSON header carries names and shapes."""
    if dist.get_world_size(group) == 1:
        assert tensors is not None
        return tensors
    sending = dist.get_rank() == source
    head = b""
    if sending:
        assert tensors is not None
        head = json.dumps([[name, str(t.dtype), list(t.shape)] for name, t in tensors.items()]).encode()
    size = torch.tensor([len(head)], dtype=torch.int64, device=device)
    dist.broadcast(size, source, group=group)
    packed = torch.frombuffer(bytearray(head), dtype=torch.uint8).to(device) if sending else None
    if packed is None:
        packed = torch.empty(int(size.item()), dtype=torch.uint8, device=device)
    dist.broadcast(packed, source, group=group)
    received: dict[str, torch.Tensor] = {}
    for name, dtype, shape in json.loads(bytes(packed.cpu().tolist())):
        if sending:
            assert tensors is not None
            tensor = tensors[name].contiguous().to(device)
        else:
            tensor = torch.empty(shape, dtype=_DTYPES[dtype], device=device)
        if tensor.numel():
            dist.broadcast(tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor, source, group=group)
        received[name] = tensor
    return received
