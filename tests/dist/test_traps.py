"""Five settings that megatron-core 0.16 accepts and computes wrongly, without an error: what comes out without our
remedy, and with it.

Derivation. A step's loss and gradient norm do not depend on the layout (tests/dist/test_layouts.py has why), so the
single process says what is right, to 1e-5 in loss and 1e-4 in norm. Each test takes one remedy away again, in the rank
itself, and finds a number that is wrong by at least a hundred times the bound; a megatron-core release that repairs
one of them makes its test fail, and the remedy can go.

Not covered: Transformer Engine's layers, and layouts of more than two ranks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from dist.checkpoint_job import Job
from helpers import tiny
from helpers.ranks import run_ranks
from numpy.linalg import norm

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import Config
from megatron_glmv.config.validate import validate
from megatron_glmv.parallel.topology import Topology

LOSS, NORM = 1e-5, 1e-4
"""Relative agreement between layouts, fp32."""


def first_step(config: Config, transformer: dict[str, Any]) -> tuple[float, float]:
    """(loss, gradient norm) of the first step, in a rank; `transformer` overwrites fields of our TransformerConfig."""
    from megatron_glmv.model import build

    ours = build.text_transformer_config

    def changed(*arguments: Any) -> Any:
        made = ours(*arguments)
        for name, value in transformer.items():
            assert getattr(made, name) != value, f"{name} is {value} already: nothing was taken away"
            setattr(made, name, value)
        return made

    build.text_transformer_config = changed
    return Job(config).train_step()[1:]


def run(config: Config, **transformer: Any) -> tuple[float, float]:
    return run_ranks(first_step, Topology.resolve(config.parallel, None).world, config, transformer)[0]


def off(ours: float, right: float) -> float:
    return abs(ours - right) / abs(right)


@pytest.fixture(scope="module")
def single() -> tuple[float, float]:
    return run(tiny.config())


def test_interleaved_stages_with_batched_messages_mix_them_up(single: tuple[float, float]) -> None:
    """On two stages, "next" and "previous" are the same rank, and batched sends and receives of both directions are
    matched in the order of posting. The remedy, in model/config.py: overlap_p2p_comm without batch_p2p_comm."""
    config = tiny.config(pipeline=2, virtual_pipeline=2)
    loss, size = run(config)
    assert off(loss, single[0]) < LOSS and off(size, single[1]) < NORM
    loss, size = run(config, overlap_p2p_comm=False, batch_p2p_comm=True)
    assert off(loss, single[0]) > 1e2 * LOSS or off(size, single[1]) > 1e2 * NORM


def test_without_initialisation_weights_lose_the_mark_of_a_shard(single: tuple[float, float]) -> None:
    """Only initialising sets `tensor_model_parallel`; unmarked weights count as copies, and the norm, hence clipping,
    takes those of tensor rank 0 alone. The remedy, in model/config.py: initialise, by functions that do nothing."""
    config = tiny.config(tensor=2)
    loss, size = run(config)
    assert off(loss, single[0]) < LOSS and off(size, single[1]) < NORM
    loss, size = run(config, perform_initialization=False)
    assert off(loss, single[0]) < LOSS
    assert off(size, single[1]) > 1e2 * NORM


def _expert_updates(config: Config) -> Any:
    """What two steps change in the weights of the first expert of this rank, in all layers: an array [parameters]."""

    def weights() -> torch.Tensor:
        named = job.trainer.chunks[0].named_parameters()
        return torch.cat([p.detach().flatten().clone() for name, p in named if ".local_experts.0." in name])

    job = Job(config)
    before = weights()
    job.train_step()
    job.train_step()
    return (weights() - before).numpy()


def test_experts_less_split_than_the_dense_layers_drift_apart() -> None:
    """Each of two tensor ranks holds every expert whole and trains it on its half of the tokens. Without expert
    parallelism megatron-core reduces their gradients with the dense ones, over one rank. The remedy: the layout is
    refused; the experts are split like the rest, or spread (expert = 2)."""
    config = tiny.config(tensor=2, expert_tensor=1)
    with pytest.raises(ConfigError, match=r"parallel\.expert_tensor.*with expert = 1 has to equal tensor = 2"):
        validate(config, None)
    right = run_ranks(_expert_updates, 1, tiny.config())[0]
    one, other = run_ranks(_expert_updates, 2, config)  # built past the rule
    assert norm(one - right) > 0.1 * norm(right)
    assert norm(one - other) > 0.1 * norm(right), "two copies of one expert are still equal"
    spread = run_ranks(_expert_updates, 2, tiny.config(tensor=2, expert=2))[0]
    # Adam divides by the moments' size: gradients near zero, where rounding shows, weigh like the others.
    assert norm(spread - right) < 1e-3 * norm(right)


def _balance_gradient(config: Config, ours: bool) -> float:
    """Norm of the balance loss's gradient in the router's weight, from 32 tokens that the tensor ranks share."""
    import torch.distributed as dist
    from megatron.core.transformer.moe.router import TopKRouter

    from megatron_glmv.model.config import text_transformer_config
    from megatron_glmv.model.router import BalancedRouter
    from megatron_glmv.parallel.groups import init_groups
    from megatron_glmv.parallel.seeding import seed_all

    groups = init_groups(Topology.resolve(config.parallel, dist.get_world_size()))
    seed_all(1)
    made = text_transformer_config(config, groups.topology)
    assert made.calculate_per_token_loss
    if not ours:
        made.moe_router_load_balancing_type, made.moe_aux_loss_coeff = "seq_aux_loss", made.glmv_balance_loss
    router = (BalancedRouter if ours else TopKRouter)(made, pg_collection=groups.mcore)
    router.set_layer_number(1)
    if ours:
        router.balance_scale = 1.0
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        router.weight.copy_(torch.randn(router.weight.shape, generator=generator))
    hidden = torch.randn(32, 1, config.model.text.hidden, generator=generator)
    probs, _ = router(hidden.chunk(groups.tp.size())[groups.tp.rank()])
    (probs * 0).sum().backward()
    dist.all_reduce(router.weight.grad)  # as finalize_model_grads does with weights marked sequence_parallel
    assert router.weight.sequence_parallel == (groups.tp.size() > 1)
    return float(router.weight.grad.norm())


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "megatron-core"])
def test_the_balance_loss_weighs_the_same_under_tensor_parallelism(ours: bool) -> None:
    """megatron-core multiplies it by the tokens of one rank where losses are sums over tokens: that undoes the division
    by all tokens only if a rank has them all. The remedy: model/router.py computes its own."""
    one = run_ranks(_balance_gradient, 1, tiny.config(), ours)[0]
    two = run_ranks(_balance_gradient, 2, tiny.config(tensor=2), ours)[0]
    assert one > 1e-4
    assert off(two, one if ours else one / 2) < 1e-5


def _moments(config: Config, root: Path, remedy: bool) -> tuple[bool, float]:
    """Trains two steps on several padded gradient buckets, saves, loads into a second model. Whether one is padded,
    and the largest difference of the loaded first moments, relative to the largest moment."""
    import contextlib

    from megatron.core.distributed import DistributedDataParallelConfig

    from megatron_glmv.checkpoint import sharded
    from megatron_glmv.train import optimizer as building

    def small_buckets(**settings: Any) -> Any:
        return DistributedDataParallelConfig(**settings, bucket_size=3000)

    building.DistributedDataParallelConfig = small_buckets
    if not remedy:
        sharded.unpadded_bucket_indices = lambda _: contextlib.nullcontext()
    job = Job(config)
    job.train_step()
    job.train_step()
    buckets = [
        b for part in job.trainer.optimizer.chained_optimizers for buffer in part.buffers for b in buffer.buckets
    ]
    padded = [bucket for bucket in buckets if bucket.grad_data.numel() > bucket.numel_unpadded]
    path = job.save(root)
    before = _first_moments(job.trainer.optimizer)
    for tensor in before:
        assert tensor.abs().max() > 0
    kept = [tensor.clone() for tensor in before]
    for tensor in before:
        tensor.fill_(7.0)
    assert job.resume(path.parent) == 2
    after = _first_moments(job.trainer.optimizer)
    scale = max(float(tensor.abs().max()) for tensor in kept)
    return len(padded) > 1, max(float((a - b).abs().max()) for a, b in zip(after, kept, strict=True)) / scale


def _first_moments(optimizer: Any) -> list[torch.Tensor]:
    return [
        part.optimizer.state[parameter]["exp_avg"]
        for part in optimizer.chained_optimizers
        for group in part.optimizer.param_groups
        for parameter in group["params"]
    ]


@pytest.mark.parametrize("remedy", [True, False], ids=["remedy", "megatron-core"])
def test_padding_between_buckets_does_not_shift_saved_moments(tmp_path: Path, remedy: bool) -> None:
    """Buckets are gathered without their padding and cut by indices that count it, so that what is saved of a bucket
    behind a padded one is its neighbour's. The remedy: parallel/remedies.py."""
    config = tiny.config(data=2, overlap_grad_reduce=True)
    padded, difference = run_ranks(_moments, 2, config, tmp_path, remedy)[0]
    assert padded, "no bucket but the last needs padding: the trap is not set"
    assert difference == 0 if remedy else difference > 1e-2
