"""Fresh weights that do not depend on the layout.

`sharded_state_dict` knows the global name, shape and offset of every shard (also of the halves of a gated layer, of
interleaved QKV groups, of expert i of n). Each global tensor is drawn from a generator keyed by (seed, name), and each
expert from its own, so that a rank draws only the experts it holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory


def shards(state: Any) -> Iterator[ShardedTensor]:
    """All sharded tensors of a sharded state dict, with those that factories make (two for a gated layer's weight)."""
    for value in nested_values(state):
        if isinstance(value, ShardedTensorFactory):
            yield from shards(value.build())
        elif isinstance(value, ShardedTensor):
            yield value


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _full(seed: int, name: str, shape: tuple[int, ...], std: float) -> torch.Tensor:
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    return torch.randn(shape, generator=_generator(seed, name)) * std


@torch.no_grad()
def initialise(chunk: Any, seed: int, std: float, metadata: dict[str, Any]) -> None:
    """Fills the parameters of a chunk: N(0, std), ones in norm weights, zeros in biases. Buffers (expert bias) stay
    zero.

    Must come before DDP and the optimizer, which copy the weights. `metadata`: what `sharded_state_dict` takes.
    """
    for shard in shards(chunk.sharded_state_dict(metadata=metadata)):
        if shard.key.endswith(("expert_bias", "_extra_state")) or shard.data is None:
            continue
        prepended = shard.prepend_axis_num
        name = ".".join([shard.key, *map(str, shard.global_offset[:prepended])])
        full = _full(seed, name, tuple(shard.global_shape[prepended:]), std)
        shard.data.copy_(full[shard.global_slice()[prepended:]].view(shard.data.shape))
