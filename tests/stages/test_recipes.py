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

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import choices, compose
from megatron_glmv.config.schema import Config
from megatron_glmv.config.validate import validate
from megatron_glmv.launch.preflight import seconds_of
from megatron_glmv.parallel.topology import Topology

GPUS = {
    "glm45v_pretrain": 256,
    "glm45v_pretrain_h200": 128,
    "glm45v_longcontext": 256,
    "glm45v_longcontext_h200": 128,
    "glm45v_sft": 128,
    "glm45v_sft_h200": 64,
    "glm45v_rlcs": 128,
    "glm45v_rlcs_h200": 64,
    "glm41v_pretrain": 32,
    "glm41v_pretrain_h200": 16,
    "glm41v_longcontext": 64,
    "glm41v_longcontext_h200": 32,
    "glm41v_sft": 64,
    "glm41v_sft_h200": 32,
    "glm41v_rlcs": 64,
    "glm41v_rlcs_h200": 32,
}
"""What each recipe says it is for."""
PAPER: dict[
    str, tuple[int, int | None, int | None]
] = {  # tokens of a sequence, sequences a step, steps (None: not given)
    "pretrain": (8_192, 1_536, 120_000),
    "longcontext": (32_768, 1_536, 10_000),
    "sft": (32_768, 32, None),
    "rlcs": (32_768, None, None),  # of packs of answers
}
TOKENS = {"pretrain": 1_509_949_440_000, "longcontext": 503_316_480_000}
"""Tokens of a whole stage, at most: 1.51 T and 0.503 T."""
WEIGHTS = {"glm45v": 107_710_927_360, "glm41v": 10_292_777_472}
DAYS = {  # of training at 35 % of a Hopper GPU's 989 TFLOP/s, RLCS's rollouts not in it
    "glm45v_pretrain": 22.6, "glm45v_longcontext": 7.5, "glm45v_sft": 0.06, "glm45v_rlcs": 0.38,
    "glm41v_pretrain": 97, "glm41v_longcontext": 16.2, "glm41v_sft": 0.07, "glm41v_rlcs": 0.4,
}  # fmt: skip
PEAK = 0.35 * 989e12
STATE_SHARE = 0.6
"""Of a GPU's memory for weights, gradients and optimizer states; the rest is for activations."""
ENGINE_SHARE = 0.9
"""The same with the rollout engine's own weights, and the keys and values of a batch of the longest answers."""


class OnMeta(TorchFunctionMode):
    """Arrays without memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in ("empty", "zeros", "ones"):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def recipe(name: str, *more: str) -> Config:
    prompts = ["rl.prompts=prompts.jsonl"] if "_rlcs" in name else []
    return compose([f"experiment={name}", "data.path=shards", "platform=cpu", "backend=torch", *prompts, *more])


def test_every_recipe_is_looked_at() -> None:
    assert {name for name in choices("experiment") if name.startswith(("glm45v_", "glm41v_"))} >= set(GPUS)


@pytest.mark.parametrize("name", GPUS)
def test_a_recipe_is_legal_on_its_gpus_and_has_the_papers_numbers(name: str) -> None:
    config = recipe(name)
    validate(config, GPUS[name])
    model, stage = name.split("_")[:2]
    tokens, batch, steps = PAPER[stage]
    assert config.stage.name == stage and config.model.name == model == config.data.template
    assert config.data.pack_tokens == tokens and batch in (config.train.global_batch, None)
    if steps is not None and batch is not None:
        assert config.train.steps == steps
        assert tokens * batch * config.train.steps == TOKENS[stage]
    assert config.stage.bias_moves == (stage not in ("sft", "rlcs"))
    assert config.parallel.context == (1 if stage == "pretrain" else 4)
    if model == "glm41v":
        assert config.parallel.tensor == 2
    elif stage not in ("sft", "rlcs"):
        assert (config.parallel.expert, config.parallel.pipeline) == (8, 4)
    topology = Topology.resolve(config.parallel, GPUS[name])
    assert (batch or config.rl.groups * config.rl.group_size) % topology.data == 0 and topology.data >= 4
    # One GPU sees as many tokens of a pack as in pre-training.
    assert tokens // topology.context == PAPER["pretrain"][0]


@pytest.mark.parametrize("name", DAYS)
def test_the_days_of_a_stage_fit_into_the_attempts_of_its_job(name: str) -> None:
    """Six operations a weight that a token meets, eight where layers are made again; attention's own are left out.
    RLCS: every answer at its longest, behind a prompt half as long."""
    config = recipe(name, "cluster=h100")
    moe, days_of_an_attempt = config.model.text.moe, seconds_of(config.cluster.time) / 86_400
    met = WEIGHTS[config.model.name]
    if moe is not None:
        idle = (config.model.text.layers - moe.first_dense) * (moe.experts - moe.topk)
        met -= idle * 3 * config.model.text.hidden * moe.ffn
    tokens = config.train.steps * config.train.global_batch * config.data.pack_tokens
    if config.stage.name == "rlcs":
        tokens = config.train.steps * config.rl.groups * config.rl.group_size * config.rl.max_new_tokens * 3 // 2
    operations = 8 if config.train.recompute == "full" else 6
    days = tokens * operations * met / (GPUS[name] * PEAK) / 86_400
    print(f"{name}: {tokens / 1e9:.1f} G tokens, {met / 1e9:.1f} G weights, {days:.2f} days of {GPUS[name]} H100")
    assert days == pytest.approx(DAYS[name], rel=0.05)
    assert days <= config.cluster.max_requeues * days_of_an_attempt


@pytest.mark.parametrize("name", [name for name in GPUS if "_rlcs" in name])
def test_rlcs_has_what_the_paper_says_of_it(name: str) -> None:
    rl, optim = recipe(name).rl, recipe(name).optim
    assert rl.thinking and rl.thinking_budget is not None  # force answering
    assert rl.loss_mean == "sample" and rl.clip_high > rl.clip_low  # clip-higher
    assert rl.expansion.reading == "rollouts" and rl.curriculum.enabled and rl.curriculum.grade
    assert optim.lr == optim.min_lr and not optim.warmup_steps and not rl.random_rewards
    with pytest.raises(ConfigError, match=r"rl\.prompts.*has to be given"):
        validate(recipe(name, "rl.prompts="), GPUS[name])


@pytest.mark.parametrize("name", [name for name in GPUS if "_rlcs" in name])
def test_the_rollout_engine_fits_beside_the_states_or_is_elsewhere(name: str, fake_world: Any) -> None:
    """In every rank: the whole model in bf16, and keys and values of `batch_size` answers, the longest behind prompts
    half as long."""
    config, world = recipe(name), GPUS[name]
    memory = 141e9 if name.endswith("h200") else 80e9
    text, rl = config.model.text, config.rl
    cache = 4 * text.layers * text.kv_heads * text.head_dim * (rl.max_new_tokens * 3 // 2) * rl.batch_size
    whole = 2 * WEIGHTS[config.model.name]
    used = max(state_bytes(config, fake_world(config, rank, world)) for rank in (0, world - 1))
    print(f"{name}: states {used / 1e9:.1f}, engine {whole / 1e9:.1f}, keys and values {cache / 1e9:.1f} GB")
    assert (used + whole + cache < ENGINE_SHARE * memory) == (rl.engine == "inprocess")


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


def state_bytes(config: Config, groups: Any, total: int = 0, experts: int = 0) -> float:
    """Weights, gradients and optimizer states of this rank, of whose `total` weights some are of `experts`."""
    if not total:
        parameters, experts = shard(config, groups)
        total = sum(p.numel() for p in parameters.values())
    topology = groups.topology
    spread = topology.data * topology.context
    over = topology.tensor * spread // (topology.expert * topology.expert_tensor)
    return 6 * total + 12 * (experts / over + (total - experts) / spread)


@pytest.mark.parametrize("name", GPUS)
def test_the_shards_of_the_first_and_the_last_rank_fit(name: str, fake_world: Any) -> None:
    config, world = recipe(name), GPUS[name]
    memory = 141e9 if name.endswith("h200") else 80e9
    for rank in (0, world - 1):
        groups = fake_world(config, rank, world)
        assert groups.rank == rank and groups.pp.rank() == (0 if rank == 0 else config.parallel.pipeline - 1)
        parameters, experts = shard(config, groups)
        total = sum(p.numel() for p in parameters.values())
        used = state_bytes(config, groups, total, experts)
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
