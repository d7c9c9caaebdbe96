"""The recipes of the real models: legal on the GPUs they name, the paper's numbers, and shards that fit their memory.

Shards of rank 0 and of the last rank are built as megatron-core would build them in that world, on the meta device and
with torch's fake process group, which has every rank's groups and moves nothing. Bytes that are counted: a bf16 weight
2, its fp32 gradient 4, and 12 of optimizer state (fp32 weight, two moments) spread over the ranks that hold the same
shard: data x context, for experts what of it the expert axis leaves. Not covered: activations, buffers of
communication, and whether a GPU reaches any speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from megatron_glmv.config.load import choices, compose
from megatron_glmv.config.schema import Config
from megatron_glmv.config.validate import validate
from megatron_glmv.parallel.topology import Topology

GPUS = {
    "glm45v_pretrain": 256,
    "glm45v_pretrain_h200": 128,
    "glm45v_longcontext": 256,
    "glm45v_longcontext_h200": 128,
    "glm45v_sft": 128,
    "glm45v_sft_h200": 64,
    "glm41v_pretrain": 32,
    "glm41v_pretrain_h200": 16,
    "glm41v_longcontext": 64,
    "glm41v_longcontext_h200": 32,
    "glm41v_sft": 64,
    "glm41v_sft_h200": 32,
}
"""What each recipe says it is for."""
PAPER = {  # tokens of a sequence, sequences a step, steps (None: not given)
    "pretrain": (8_192, 1_536, 120_000),
    "longcontext": (32_768, 1_536, 10_000),
    "sft": (32_768, 32, None),
}
TOKENS = {"pretrain": 1_509_949_440_000, "longcontext": 503_316_480_000}
"""Tokens of a whole stage, at most: 1.51 T and 0.503 T."""
WEIGHTS = {"glm45v": 107_710_927_360, "glm41v": 10_292_777_472}
STATE_SHARE = 0.6
"""Of a GPU's memory for weights, gradients and optimizer states; the rest is for activations."""


class OnMeta(TorchFunctionMode):
    """Arrays without memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in ("empty", "zeros", "ones"):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def recipe(name: str, *more: str) -> Config:
    return compose([f"experiment={name}", "data.path=shards", "platform=cpu", "backend=torch", *more])


def test_every_recipe_is_looked_at() -> None:
    assert {name for name in choices("experiment") if name.startswith(("glm45v_", "glm41v_"))} >= set(GPUS)


@pytest.mark.parametrize("name", GPUS)
def test_a_recipe_is_legal_on_its_gpus_and_has_the_papers_numbers(name: str) -> None:
    config = recipe(name)
    validate(config, GPUS[name])
    model, stage = name.split("_")[:2]
    tokens, batch, steps = PAPER[stage]
    assert config.stage.name == stage and config.model.name == model == config.data.template
    assert (config.data.pack_tokens, config.train.global_batch) == (tokens, batch)
    if steps is not None:
        assert config.train.steps == steps
        assert tokens * batch * config.train.steps == TOKENS[stage]
    assert config.stage.bias_moves == (stage != "sft")
    assert config.parallel.context == (1 if stage == "pretrain" else 4)
    if model == "glm41v":
        assert config.parallel.tensor == 2
    elif stage != "sft":
        assert (config.parallel.expert, config.parallel.pipeline) == (8, 4)
    topology = Topology.resolve(config.parallel, GPUS[name])
    assert batch % topology.data == 0 and topology.data >= 4
    # One GPU sees as many tokens of a pack as in pre-training.
    assert tokens // topology.context == PAPER["pretrain"][0]


@pytest.fixture
def fake_world() -> Iterator[Any]:
    """Joins a world of any size as any rank, in this process."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from megatron_glmv.platform.device import select

    select("cpu").install()
    from megatron_glmv.parallel.groups import destroy_groups, init_groups
    from megatron_glmv.parallel.seeding import seed_all

    def join(config: Config, rank: int, world: int) -> Any:
        if dist.is_initialized():
            destroy_groups()
        dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
        groups = init_groups(Topology.resolve(config.parallel, world))
        seed_all(config.train.seed)
        return groups

    yield join
    if dist.is_initialized():
        destroy_groups()


def shard(config: Config, groups: Any) -> tuple[dict[str, torch.nn.Parameter], int]:
    """(parameters of this rank, those of them that are experts')."""
    from megatron_glmv.model.build import build_chunk
    from megatron_glmv.model.config import text_transformer_config

    with OnMeta():
        chunk = build_chunk(config, groups, text_transformer_config(config, groups.topology), "torch", None)
    parameters = dict(chunk.named_parameters())
    assert all(parameter.is_meta for parameter in parameters.values())
    return parameters, sum(p.numel() for p in parameters.values() if not getattr(p, "allreduce", True))


@pytest.mark.parametrize("name", GPUS)
def test_the_shards_of_the_first_and_the_last_rank_fit(name: str, fake_world: Any) -> None:
    config, world = recipe(name), GPUS[name]
    memory = 141e9 if name.endswith("h200") else 80e9
    for rank in (0, world - 1):
        groups = fake_world(config, rank, world)
        assert groups.rank == rank and groups.pp.rank() == (0 if rank == 0 else config.parallel.pipeline - 1)
        parameters, experts = shard(config, groups)
        total = sum(p.numel() for p in parameters.values())
        topology = groups.topology
        spread = topology.data * topology.context
        over = topology.tensor * spread // (topology.expert * topology.expert_tensor)
        used = 6 * total + 12 * (experts / over + (total - experts) / spread)
        assert used < STATE_SHARE * memory, f"rank {rank}: {used / 1e9:.1f} GB"
        print(f"{name} rank {rank} of {world}: {total / 1e9:.2f} G weights, {used / 1e9:.1f} GB of {memory / 1e9:.0f}")
        assert ("vision" in "".join(parameters)) == (rank == 0 or config.parallel.pipeline == 1)
        assert (experts > 0) == (config.model.text.moe is not None)


@pytest.mark.parametrize(("name", "layers"), [("glm45v_pretrain", (11, 12, 12, 11)), ("glm45v_sft_h200", (23, 23))])
def test_all_pipeline_stages_together_are_the_model(name: str, layers: tuple[int, ...], fake_world: Any) -> None:
    config, world = recipe(name), GPUS[name]
    assert config.parallel.pipeline_layers == layers
    total = 0
    for stage in range(config.parallel.pipeline):
        groups = fake_world(config, stage * world // config.parallel.pipeline, world)
        parameters, experts = shard(config, groups)
        total += sum(p.numel() for p in parameters.values()) + experts * (config.parallel.expert - 1)
    assert total == WEIGHTS[config.model.name]
