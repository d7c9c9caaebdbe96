"""What `stage=rlcs` refuses, before any process starts."""

from __future__ import annotations

import pytest

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import compose
from megatron_glmv.config.validate import validate


def test_the_tiny_experiment_is_legal_on_every_tiny_layout() -> None:
    for layout in ("single", "tp2", "pp2", "pp2_vpp2", "ep2", "tp2_pp2_ep2"):
        validate(compose(["experiment=tiny_rlcs", f"parallel={layout}"]))
    config = compose(["experiment=tiny_rlcs", "model=tiny_glm41v", "data.template=glm41v"])
    validate(config)
    assert not config.stage.bias_moves and config.rl.clip_high > config.rl.clip_low


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ("rl.prompts=", "rl.prompts"),
        ("rl.group_size=1", "rl.group_size"),
        ("rl.clip_high=0.1", "rl.clip_high"),
        ("rl.thinking_budget=5", "rl.thinking_budget"),
        ("rl.curriculum.edges=[0.5,0.2]", "rl.curriculum.edges"),
        ("rl.curriculum.mix={image:-1}", "rl.curriculum.mix"),
        ("rl.expansion.reading=more", "rl.expansion.reading"),
        ("rl.expansion.cap=0.5", "rl.expansion.cap"),
        ("rl.loss_mean=words", "rl.loss_mean"),
        ("rl.updates=25", "rl.updates"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: str, option: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(compose(["experiment=tiny_rlcs", given]))
    assert refused.value.option == option
