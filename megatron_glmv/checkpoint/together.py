"""Steps that all ranks take, or none: an error on one rank becomes the same exception on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_glmv.checkpoint.errors import CheckpointError, CorruptCheckpointError, MismatchError, ReadError, SaveError

T = TypeVar("T")

_OWN = {kind.__name__: kind for kind in (SaveError, ReadError, MismatchError, CorruptCheckpointError)}


def together(action: Callable[[], T], error: type[CheckpointError] = CheckpointError) -> list[T]:
    """Runs `action` on every rank and returns all ranks' results, in rank order. Collective.

    When `action` raised on any rank, raises on every rank, naming the ranks that failed and why: the checkpoint error
    that was raised, or `error` for anything else. So no rank goes on to a collective in which another will never take
    part. Results travel over the network: keep them small.
    """
    result: T | None = None
    caught: BaseException | None = None
    try:
        result = action()
    except (Exception, CheckpointException) as exception:  # torch's CheckpointException is no Exception
        caught = exception
    failure = None if caught is None else (type(caught).__name__, str(caught))
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (failure, result))
    failed = [(rank, *outcome[0]) for rank, outcome in enumerate(everyone) if outcome[0] is not None]
    if failed:
        kinds = {kind for _, kind, _ in failed}
        raise _OWN.get(kinds.pop() if len(kinds) == 1 else "", error)(_describe(failed, len(everyone))) from caught
    return [outcome[1] for outcome in everyone]


def only_rank_0(action: Callable[[], T]) -> Callable[[], T | None]:
    """`action` on rank 0, nothing elsewhere."""
    return lambda: action() if dist.get_rank() == 0 else None


def _describe(failed: list[tuple[int, str, str]], world: int) -> str:
    """Each distinct error once, with the ranks that had it unless all did."""
    ranks: dict[str, list[int]] = {}
    for rank, kind, message in failed:
        ranks.setdefault(message if kind in _OWN else f"{kind}: {message}", []).append(rank)
    return "; ".join(
        message if len(who) == world else f"rank {', '.join(map(str, who))}: {message}"
        for message, who in ranks.items()
    )
