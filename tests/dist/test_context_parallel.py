"""Every gradient under context parallelism, and under the other axes and products, is that of one process.

Derivation. A step's loss is a sum over tokens, divided by one global weight, and each token, image and expert slot is
computed on exactly one rank, so the sum of the ranks' gradients is the single process's gradient of every tensor. In
fp32 they differ by the order of summation: bound 1e-4 in the norm of each tensor. The packs of tests/helpers/tiny.py
have an image and a video that begin at token 3 of segments of 32, which CP 2 cuts at 8 and CP 4 at 4; one of four has
none at all. k's part of the QKV bias has gradient 0 up to rounding for the share that all keys have in common, and is
compared together with q and v, which it is stored with.

Not covered: Transformer Engine's attention, which needs a GPU; bf16; experts spread with expert_tensor 2, whose uneven
gathers gloo refuses.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.config.schema import Config
from megatron_glmv.parallel.topology import Topology


def _gradients(config: Config) -> list[tuple[str, tuple[int, ...], tuple[slice, ...], Any]]:
    """(global name, global shape, slice, gradient) of every shard of this rank in the first step, all-reduced."""
    import torch.distributed as dist
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from megatron_glmv.model.build import build_model, sharding_metadata
    from megatron_glmv.model.initialise import shards
    from megatron_glmv.model.router import samples_in, set_balance_scale
    from megatron_glmv.parallel.groups import device_sum, init_groups
    from megatron_glmv.parallel.seeding import seed_all
    from megatron_glmv.train.feed import Feed
    from megatron_glmv.train.step import Trainer, loss_and_report

    groups = init_groups(Topology.resolve(config.parallel, dist.get_world_size()))
    seed_all(config.train.seed)
    device = torch.device("cpu")
    ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=False)
    built = build_model(config, groups, backend="torch", device=device)
    chunks = [DistributedDataParallel(c.config, ddp, c, disable_bucketing=True) for c in built]
    trainer = Trainer(chunks, SimpleNamespace(scale_loss=lambda x: x), groups, device, config.data.pack_tokens)
    packs, size = config.train.global_batch, groups.topology.data
    owner = dist.get_process_group_ranks(groups.model)[0] == dist.get_rank()
    feed = Feed(tiny.Packs(packs, groups.dp_rank, size) if owner else None, groups, device, packs // size)
    batches = feed.next_step()
    counts = [
        sum(float(b.loss_weights.sum()) for b in batches),
        float(sum(samples_in(b.padding, b.cu_seqlens) for b in batches)),
    ]
    trainer._weight, samples = device_sum(counts, groups.dp, device)
    set_balance_scale(chunks, trainer._weight / samples)
    for chunk in chunks:
        chunk.zero_grad_buffer()
    trainer.forward_backward(batches, loss_and_report, forward_only=False)
    found = []
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.data = parameter.main_grad
        for shard in shards(chunk.module.sharded_state_dict(metadata=sharding_metadata(groups))):
            if shard.data is None or shard.key.endswith(("expert_bias", "_extra_state")):
                continue
            where = shard.global_slice()
            data = shard.data.detach().numpy().reshape([s.stop - s.start if isinstance(s, slice) else 1 for s in where])
            where = tuple(s if isinstance(s, slice) else slice(s, s + 1) for s in where)
            found.append((shard.key, tuple(shard.global_shape), where, data.copy()))
    return found


def gradients(model: Any, **parallel: Any) -> dict[str, Any]:
    """The whole gradient of every tensor by its global name. Asserts that ranks with one shard agree on it."""
    config = tiny.config(model, **parallel)
    whole: dict[str, Any] = {}
    seen: dict[tuple[str, str], Any] = {}
    for rank in run_ranks(_gradients, Topology.resolve(config.parallel, None).world, config):
        for name, shape, where, data in rank:
            whole.setdefault(name, np.full(shape, np.nan, dtype=np.float32))[where] = data
            other = seen.setdefault((name, str(where)), data)
            assert np.allclose(other, data, rtol=1e-4, atol=1e-6), name
    return whole


def check(model: Any, layouts: list[dict[str, Any]]) -> None:
    right = gradients(model)
    assert len(right) > 40
    for parallel in layouts:
        ours = gradients(model, **parallel)
        assert ours.keys() == right.keys()
        for name, gradient in ours.items():
            difference = np.linalg.norm(gradient - right[name])
            assert difference <= 1e-4 * np.linalg.norm(right[name]), (parallel, name, difference)


@pytest.mark.parametrize("model", [tiny.MODEL, tiny.DENSE], ids=["half rotary", "interleaved rotary"])
def test_every_gradient_is_that_of_one_process(model: Any) -> None:
    check(model, [{"context": 2}])


PRODUCTS: list[dict[str, Any]] = [
    {"tensor": 2},
    {"tensor": 2, "encoder_data": False},
    {"pipeline": 2},
    {"pipeline": 2, "virtual_pipeline": 2},
    {"data": 2},
    {"data": 2, "expert": 2},
    {"context": 4},
    {"context": 2, "encoder_data": False},
    {"context": 2, "expert": 2},
    {"context": 2, "data": 2},
    {"context": 2, "pipeline": 2},
    {"context": 2, "pipeline": 2, "virtual_pipeline": 2},
    {"tensor": 2, "context": 2},
    {"tensor": 2, "context": 2, "encoder_data": False},
    {"tensor": 2, "context": 2, "expert": 2},
    {"tensor": 2, "expert": 2},
    {"tensor": 2, "pipeline": 2, "expert": 2},
    {"tensor": 2, "data": 2},
]
DENSE_PRODUCTS: list[dict[str, Any]] = [
    {"tensor": 2, "sequence": False},
    {"tensor": 2, "sequence": False, "encoder_data": False},
    {"tensor": 2, "context": 2},
    {"tensor": 2, "context": 2, "sequence": False},
    {"tensor": 2, "context": 2, "sequence": False, "encoder_data": False},
]


@pytest.mark.slow
@pytest.mark.parametrize("model, layouts", [(tiny.MODEL, PRODUCTS), (tiny.DENSE, DENSE_PRODUCTS)], ids=["moe", "dense"])
def test_every_gradient_in_products_with_other_axes(model: Any, layouts: list[dict[str, Any]]) -> None:
    check(model, layouts)
