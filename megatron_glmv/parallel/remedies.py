"""Corrections of what megatron-core computes wrongly without an error, where a setting alone does not help."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def unpadded_bucket_indices(optimizer: Any) -> Iterator[None]:
    """To be held around `sharded_state_dict` of a distributed optimizer in its fully_reshardable form.

    megatron-core gathers the gradient buckets without the padding at their ends, but looks parameters up by indices
    that count it (optimizer/distrib_optimizer.py, sharded_param_state_fully_reshardable). With several buckets
    (overlap_grad_reduce) the state of every bucket behind the first padded one is saved shifted, with one warning.
    A bucket needs padding when its size is no multiple of lcm(data-parallel size, 128).
    """
    buffers = [buffer for part in optimizer.chained_optimizers for buffer in getattr(part, "buffers", [])]
    originals = [buffer.param_index_map for buffer in buffers]
    for buffer in buffers:
        padding, before = 0, []
        for bucket in buffer.buckets:
            before.append(padding)
            padding += bucket.grad_data.numel() - bucket.numel_unpadded
        buffer.param_index_map = {
            param: (start - before[bucket], end - before[bucket], bucket)
            for param, (start, end, bucket) in buffer.param_index_map.items()
        }
    try:
        yield
    finally:
        for buffer, original in zip(buffers, originals, strict=True):
            buffer.param_index_map = original


@contextlib.contextmanager
def one_moment(part: Any) -> Iterator[Callable[[dict[int, Any]], dict[int, Any]]]:
    """To be held around `sharded_state_dict` of a distributed optimizer in its fully_reshardable form, whose result
    goes through the function that it yields.

    megatron-core takes for granted that every parameter has AdamW's two moments (optimizer/distrib_optimizer.py,
    get_parameter_state_dp_zero). Muon's matrices (`single_moment` of the optimizer inside) have one: a zero that takes
    no memory stands in for the other meanwhile, and is left out of what is saved and asked for.
    """
    single: frozenset[Any] = getattr(part.optimizer, "single_moment", frozenset())
    original = part._get_main_param_and_optimizer_states

    def states(parameter: Any) -> dict[str, Any]:
        found: dict[str, Any] = original(parameter)
        if parameter in single:
            found["exp_avg_sq"] = found["param"].new_zeros(()).expand(found["param"].shape)
        return found

    def without_second(param_state: dict[int, Any]) -> dict[int, Any]:
        order = [parameter for buffer in part.buffers for parameter in buffer.param_index_map]
        for parameter, tensors in zip(order, param_state.values(), strict=True):
            if parameter in single:
                del tensors["exp_avg_sq"]
        return param_state

    if single:
        part._get_main_param_and_optimizer_states = states
    try:
        yield without_second
    finally:
        if single:
            del part._get_main_param_and_optimizer_states
