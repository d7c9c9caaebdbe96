"""Corrections of what megatron-core computes wrongly without an error, where a setting alone does not help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
