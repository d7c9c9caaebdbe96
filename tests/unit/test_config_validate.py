"""An illegal layout is refused by name, and every value that a refusal proposes was tried."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.layout_rules import balanced
from megatron_glmv.config.load import compose, replace_option
from megatron_glmv.config.schema import Config, ParallelConfig
from megatron_glmv.config.validate import problems, validate
from megatron_glmv.parallel.topology import Topology


@pytest.fixture(scope="module")
def tiny() -> Config:
    return compose(["experiment=tiny_pretrain"])


@pytest.fixture(scope="module")
def dense() -> Config:
    return compose(["experiment=tiny_pretrain", "model=tiny_glm41v"])


def refused(config: Config, world: int | None = None, **options: Any) -> ConfigError:
    for option, value in options.items():
        config = replace_option(config, option.replace("__", "."), value)
    with pytest.raises(ConfigError) as caught:
        validate(config, world)
    for option, value in caught.value.legal:
        assert caught.value.option not in {p.option for p in problems(replace_option(config, option, value), world)}
    return caught.value


@pytest.mark.parametrize(
    ("options", "option", "fix"),
    [
        ({"parallel__tensor": 3}, "parallel.tensor", "parallel.tensor=2 or 1"),
        ({"parallel__tensor": 4}, "parallel.tensor", "parallel.tensor=2"),
        ({"parallel__expert": 3}, "parallel.expert", "parallel.expert=1"),
        ({"parallel__expert": 2}, "parallel.expert", "parallel.data=2"),
        (
            {"parallel__pipeline": 3},
            "parallel.pipeline",
            "parallel.pipeline=2 or 4, or parallel.pipeline_layers=[1,2,1]",
        ),
        ({"parallel__pipeline": 8}, "parallel.pipeline", "parallel.pipeline=4"),
        ({"parallel__virtual_pipeline": 2}, "parallel.virtual_pipeline", "parallel.virtual_pipeline=1"),
        ({"parallel__context": 3}, "parallel.context", "parallel.context=2 or 4"),
        ({"parallel__context": 16}, "parallel.context", "parallel.context=8"),
        (
            {
                "parallel__context": 8,
                "parallel__tensor": 4,
                "model__text__kv_heads": 4,
                "data__pack_tokens": 1008,
            },
            "data.pack_tokens",
            "992 or 1024",
        ),
        ({"parallel__data": 2, "train__global_batch": 3}, "train.global_batch", "train.global_batch=2 or 4"),
        ({"data__pack_tokens": 1000}, "data.pack_tokens", "data.pack_tokens=992 or 1008"),
        ({"parallel__tensor": 2, "parallel__expert_tensor": 1}, "parallel.expert_tensor", "null or 2"),
        ({"parallel__data": 2, "parallel__expert_tensor": 2}, "parallel.expert_tensor", "null or 1"),
        ({"parallel__tensor": 2, "parallel__sequence": False}, "parallel.sequence", "null or true"),
        ({"parallel__sequence": True}, "parallel.sequence", "null or false"),
        ({"parallel__overlap_param_gather": True}, "parallel.overlap_param_gather", "overlap_grad_reduce=true"),
        (
            {"parallel__encoder_tensor": True, "parallel__tensor": 2, "model__vision__merger_ffn": 255},
            "parallel.encoder_tensor",
            "parallel.encoder_tensor=false, or parallel.tensor=1",
        ),
        ({"parallel__pipeline": 2, "parallel__pipeline_layers": (1, 1)}, "parallel.pipeline_layers", "[2,2] or null"),
        ({"model__text__mrope_section": (1, 2, 3)}, "model.text.mrope_section", "[2,3,3]"),
        ({"model__text__kv_heads": 3}, "model.text.kv_heads", "model.text.kv_heads=2 or 4"),
        ({"model__vision__heads": 3}, "model.vision.heads", "model.vision.heads=2 or 4"),
        ({"model__text__moe__topk": 9}, "model.text.moe.topk", "model.text.moe.topk=8"),
        ({"precision__name": "fp9"}, "precision.name", "precision.name=fp8"),
        ({"precision__name": "fp8", "platform": "cpu"}, "precision.fp8_backend", "precision.fp8_backend=emulate"),
        ({"precision__name": "fp8", "backend": "torch"}, "precision.fp8_backend", "backend=te or auto"),
        (
            {"precision__name": "fp8", "precision__fp8_backend": "emulate", "backend": "te"},
            "precision.fp8_backend",
            "backend=torch or auto",
        ),
        ({"precision__name": "fp8", "model__text__layers": 2}, "precision.name", "precision.name=bf16"),
        ({"optim__lr": -1.0}, "optim.lr", "at least 0"),
        ({"optim__lr": float("nan")}, "optim.lr", "not a finite number"),
        ({"optim__beta2": 1.0}, "optim.beta2", "0.95"),
        ({"optim__min_lr": 1.0}, "optim.min_lr", "is above lr"),
        ({"train__steps": 0}, "train.steps", "train.steps=1"),
        ({"train__stop_step": 10**6}, "train.stop_step", "train.stop_step="),
        ({"data__path": ""}, "data.path", "glmv data make"),
        ({"data__val_path": "", "train__val_every": 5}, "train.val_every", "data.val_path"),
        ({"resume": "maybe"}, "resume", "auto, anyway, never"),
    ],
)
def test_a_refusal_names_the_option_and_what_would_be_legal(
    tiny: Config, options: dict[str, Any], option: str, fix: str
) -> None:
    error = refused(tiny, **options)
    assert error.option == option
    assert fix in str(error)


def test_interleaved_stages_need_micro_batches_by_the_pipeline(tiny: Config) -> None:
    error = refused(tiny, parallel__pipeline=2, parallel__virtual_pipeline=2, train__global_batch=3)
    assert error.option == "train.global_batch" and "2 or 4" in error.fix


def test_experts_are_refused_on_a_dense_model(dense: Config) -> None:
    assert "no experts" in str(refused(dense, parallel__tensor=2, parallel__expert=2))
    validate(replace_option(dense, "parallel.sequence", None))


def test_a_dense_model_may_go_without_sequence_parallelism(dense: Config) -> None:
    validate(replace(dense, parallel=ParallelConfig(tensor=2, sequence=False)))


def test_the_world_a_launcher_started_has_to_fit(tiny: Config) -> None:
    layout = replace(tiny, parallel=ParallelConfig(tensor=2, pipeline=2, expert=2))
    validate(layout, 4)
    assert "start 4 or 8 ranks" in refused(layout, 6).fix
    assert refused(replace_option(layout, "parallel.data", 1), 8).option == "parallel.data"


def test_an_uneven_split_gives_the_ends_fewer_layers() -> None:
    assert balanced(46, 4) == (11, 12, 12, 11)
    for layers in range(1, 40):
        for stages in range(1, layers + 1):
            split = balanced(layers, stages)
            assert len(split) == stages and sum(split) == layers and max(split) - min(split) <= 1
            assert split[0] == min(split) or layers % stages == stages - 1


def random_config(base: Config, rng: random.Random, changes: int | None = None) -> Config:
    """`changes`: how many options are drawn anew; None: all of them."""
    some = rng.choice
    options: dict[str, Any] = {
        "parallel.tensor": some([1, 1, 2, 2, 3, 4]),
        "parallel.pipeline": some([1, 1, 2, 3, 4, 6]),
        "parallel.virtual_pipeline": some([1, 1, 1, 2, 3]),
        "parallel.expert": some([1, 1, 2, 3, 4, 8]),
        "parallel.expert_tensor": some([None, None, None, 1, 2]),
        "parallel.data": some([None, None, 1, 2, 3, 4]),
        "parallel.context": some([1, 1, 1, 2, 3, 4]),
        "parallel.sequence": some([None, None, None, True, False]),
        "parallel.pipeline_layers": some([None, None, None, (2, 2), (1, 2, 1), (3, 1, 1)]),
        "parallel.overlap_param_gather": some([False, False, True]),
        "train.global_batch": some([1, 2, 3, 4, 6, 8, 12]),
        "train.stop_step": some([None, None, 0, 10, 10**6]),
        "data.pack_tokens": some([1024, 1024, 1000, 48, 8]),
        "optim.lr": some([1e-3, 1e-3, 0.0, -1.0]),
        "precision.name": some(["fp32", "fp32", "bf16", "fp8", "fp16"]),
        "platform": some(["auto", "auto", "cpu"]),
        "model.text.kv_heads": some([2, 2, 2, 3, 4]),
    }
    for option in rng.sample(sorted(options), changes or len(options)):
        base = replace_option(base, option, options[option])
    return base


@pytest.mark.parametrize("model", ["tiny", "dense"])
def test_following_the_advice_always_ends_at_a_legal_layout(model: str, request: pytest.FixtureRequest) -> None:
    """2 x 300 random configs, most with several mistakes: taking the first proposed value again and again ends, without
    ever bringing an option back that was already answered, at a layout whose grid can be laid."""
    rng = random.Random(20)
    legal = 0
    for _ in range(300):
        config = random_config(request.getfixturevalue(model), rng)
        world = rng.choice([None, None, None, 4, 8, 12])
        for _ in range(25):
            try:
                validate(config, world)
                break
            except ConfigError as error:
                assert error.legal or error.fix, error
                if not error.legal:  # only the world can leave no option to change
                    assert world is not None, error
                    world = None
                    continue
                config = replace_option(config, *error.legal[0])
        else:
            pytest.fail(f"no end of advice: {config.parallel}")
        topology = Topology.resolve(config.parallel, world)
        assert world is None or topology.world == world
        assert config.model.text.kv_heads % topology.tensor == 0
        assert topology.stage_ranks % (topology.expert * topology.expert_tensor) == 0
        legal += 1
    assert legal == 300


def test_where_one_value_mends_it_all_only_such_values_are_named(tiny: Config) -> None:
    rng = random.Random(7)
    single = 0
    for _ in range(400):
        config = random_config(tiny, rng, changes=2)
        found = problems(config, None)
        if len({p.rule for p in found}) != 1:
            continue
        try:
            validate(config, None)
        except ConfigError as error:
            whole = [pair for pair in error.legal if not problems(replace_option(config, *pair), None)]
            if whole:
                single += 1
                assert len(whole) == len(error.legal), error
    assert single > 20


@pytest.mark.parametrize("name", ["moe_router_fusion", "moe_permute_fusion"])
def test_fused_moe_kernels_need_transformer_engine(name: str) -> None:
    config = compose(["experiment=tiny_pretrain", "data.path=unused", "data.val_path="])
    fused = replace(config, train=replace(config.train, **{name: True}))
    with pytest.raises(ConfigError, match=f"train.{name}.*backend=te"):
        validate(fused)
    validate(replace(fused, backend="te", platform="cuda"))
