"""YAML and the command line become one frozen Config, or one line that names the option."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from megatron_glmv.config.build import option_names, skeleton
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.fingerprint import NOT_LOAD_BEARING, flatten
from megatron_glmv.config.load import (
    choices,
    compose,
    conf_dir,
    fingerprint,
    from_dict,
    groups,
    identity,
    replace_option,
    to_json,
    to_yaml,
)
from megatron_glmv.config.validate import validate

TINY = "experiment=tiny_pretrain"
WORLD = {name: 256 if name.startswith("glm45v") else 64 for name in choices("experiment") if name.startswith("glm")}
"""Ranks that a launcher would start; the tiny ones start their own."""


def error(*overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        compose([TINY, *overrides])
    assert caught.value.exit_code == 64
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_an_experiment_carries_its_own_name(experiment: str) -> None:
    assert compose([f"experiment={experiment}"]).experiment == experiment


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in groups() for name in choices(group)])
def test_every_choice_of_every_group_is_legal(choice: str) -> None:
    model, _, name = choice.removeprefix("parallel=").partition("_")
    real = f"{model}_{'sft' if 'sft' in name else 'pretrain'}" if choice.startswith("parallel=glm") else None
    if choice.startswith("experiment="):
        overrides = [choice]
    else:
        overrides = [f"experiment={real or 'tiny_pretrain'}", choice, "train.steps=120000"]
    config = compose([*overrides, "data.path=shards", "rl.prompts=prompts.jsonl"])
    validate(config, WORLD.get(config.experiment))


def test_a_model_file_gives_every_option_of_its_experts() -> None:
    # A missing key would be unknown to the command line, because the schema's default is no experts at all.
    expected = {name.rpartition(".")[2] for name in option_names() if name.startswith("model.text.moe.")}
    for model in choices("model"):
        moe = yaml.safe_load((conf_dir() / "model" / f"{model}.yaml").read_text())["text"].get("moe")
        assert moe is None or set(moe) == expected, model


def test_the_paper_recipe_is_the_experiment() -> None:
    config = compose(["experiment=glm45v_pretrain"])
    assert (config.parallel.expert, config.parallel.pipeline) == (8, 4)
    assert (config.data.pack_tokens, config.train.global_batch, config.train.steps) == (8192, 1536, 120_000)
    moe = config.model.text.moe
    assert moe is not None and (moe.bias_rate, moe.aux_loss) == (1e-3, 1e-4)
    assert compose(["experiment=glm41v_pretrain"]).parallel.tensor == 2


def test_the_command_line_outranks_the_experiment() -> None:
    config = compose([TINY, "model=tiny_glm41v", "parallel=dp2", "optim.lr=1", "train.stop_step=7"])
    assert config.model.name == "tiny_glm41v" and config.model.text.moe is None
    assert config.parallel.data == 2
    assert config.optim.lr == 1.0 and isinstance(config.optim.lr, float)
    assert config.train.stop_step == 7


def test_a_config_survives_yaml() -> None:
    config = compose([TINY, "parallel.pipeline_layers=[2,2]", "optim.eps=1e-8"])
    assert from_dict(yaml.safe_load(to_yaml(config))) == config
    assert from_dict(to_json(config)) == config


def test_a_config_cannot_be_changed() -> None:
    config = compose([TINY])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.steps = 1  # type: ignore[misc]
    assert replace_option(config, "train.steps", 1).train.steps == 1
    assert config.train.steps != 1


@pytest.mark.parametrize(
    ("override", "option", "fix"),
    [
        ("parallel.tensr=3", "parallel.tensr", "parallel.tensor"),
        ("paralel.tensor=3", "paralel.tensor", "parallel.tensor"),
        ("+train.step=3", "train.step", "train.steps"),
        ("lr=3", "lr", "optim.lr"),
        ("modle=tiny_glm41v", "modle", "model"),
        ("parallel=tp3", "parallel", "parallel=tp2"),
        ("experiment=tiny_pretrian", "experiment", "experiment=tiny_pretrain"),
        ("model.text.moe.bias_rat=0", "model.text.moe.bias_rat", "model.text.moe.bias_rate"),
        ("+train.steps=3", "train.steps", "without the +"),
    ],
)
def test_a_wrong_key_names_the_nearest(override: str, option: str, fix: str) -> None:
    refused = error(override)
    assert refused.option == option
    assert fix in refused.fix


@pytest.mark.parametrize(
    ("override", "option", "words"),
    [
        ("train.steps=1.5", "train.steps", "expected an integer, got float; nearest: 2"),
        ("train.steps=true", "train.steps", "expected an integer, got bool"),
        ("optim.lr=abc", "optim.lr", "expected a number, got str"),
        ("optim.lr=null", "optim.lr", "expected a number, got NoneType"),
        ("parallel.sequence=1", "parallel.sequence", "expected true or false or null, got int"),
        ("run_dir=12", "run_dir", "expected text or null, got int; put it in quotes"),
        ("model.text.mrope_section=[1,2]", "model.text.mrope_section", "expected 3 values, got 2"),
        ("parallel.pipeline_layers=[2,x]", "parallel.pipeline_layers[1]", "expected an integer, got str"),
        ("parallel.pipeline_layers=4", "parallel.pipeline_layers", "expected a list like [1,2] or null"),
        ("train=5", "", "Config group override"),
        ("optim.lr=${nope}", "optim.lr", "'nope' not found"),
        ("optim.lr=[1", "optim.lr", "no viable alternative"),
        ("model=tiny_glm41v,glm41v", "model", "-m"),
    ],
)
def test_a_wrong_type_names_option_value_and_what_was_expected(override: str, option: str, words: str) -> None:
    refused = error(override)
    assert option in refused.option
    assert words in str(refused)


def test_an_experiment_has_to_be_named() -> None:
    with pytest.raises(ConfigError) as caught:
        compose([])
    assert caught.value.option == "experiment"
    assert "tiny_pretrain" in caught.value.fix


def test_the_fingerprint_sees_what_changes_the_loss_and_nothing_else() -> None:
    config = compose([TINY])
    same = ["run_dir=x", "parallel=dp2", "checkpoint.every=7", "data.workers=3", "train.log_every=5", "data.path=moved"]
    for override in same:
        assert fingerprint(compose([TINY, override])) == fingerprint(config), override
    for override in ["optim.lr=1e-5", "train.seed=1", "data.pack_tokens=1024", "precision=bf16", "model=tiny_glm41v"]:
        assert fingerprint(compose([TINY, override])) != fingerprint(config), override
    assert identity(compose([TINY, "run_dir=x"])) == identity(config)
    assert identity(compose([TINY, "parallel=dp2"])) != identity(config)


def test_names_that_do_not_count_exist() -> None:
    names = set(option_names())
    assert set(NOT_LOAD_BEARING) <= names


def test_every_option_has_a_default_in_the_schema_or_is_asked_for() -> None:
    def leaves(tree: object, prefix: str = "") -> dict[str, object]:
        if not isinstance(tree, dict):
            return {prefix: tree}
        return {k: v for key, value in tree.items() for k, v in leaves(value, f"{prefix}.{key}".lstrip(".")).items()}

    required = {name for name, value in leaves(skeleton()).items() if value == "???"}
    assert {name.split(".")[0] for name in required} == {"experiment", "model"}
    assert set(leaves(skeleton())) - required <= set(flatten(compose([TINY]))) | {"model.text.moe"}
