"""Which parameters are updated alike: by Muon or AdamW, with which share of the rate, with or without decay."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate

from megatron_glmv.config.schema import OptimConfig
from megatron_glmv.model.freeze import part_of


def kind_of(name: str, parameter: torch.nn.Parameter) -> str:
    """The kind (one of KINDS, config/schema.py) of a parameter, by its name, which may have wrappers in front."""
    path = name.split(".")
    if path[-1].endswith("bias"):
        return "bias"
    if parameter.dim() == 1:
        return "norm"
    if any("embed" in part for part in path):
        return "embedding"
    if "output_layer" in path:
        return "head"
    if "router" in path:
        return "router"
    return "matrix" if parameter.dim() == 2 else "convolution"


def inner_name(name: str) -> str:
    """The name within GLMV."""
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def by_muon(name: str, parameter: torch.nn.Parameter, optim: OptimConfig) -> bool:
    """Every matrix, the router's too: GLM-4.5's report (arXiv 2508.06471, section 2.4) excepts word embeddings, biases
    and RMSNorm weights only. The output head goes with the embeddings (arXiv 2502.16982, section 2.2): a row of either
    belongs to one token, and no product mixes rows."""
    return optim.name == "muon" and kind_of(name, parameter) in ("matrix", "router")


def options_of(name: str, parameter: torch.nn.Parameter, optim: OptimConfig) -> tuple[tuple[str, Any], ...]:
    """The options of a parameter's group, hashable."""
    name = inner_name(name)
    factor = {"vision": optim.lr_vision, "merger": optim.lr_merger, "decoder": optim.lr_decoder}[part_of(name)]
    return (
        ("lr_mult", float(factor)),
        ("muon", by_muon(name, parameter, optim)),
        ("wd_mult", 0.0 if kind_of(name, parameter) in optim.no_decay else 1.0),
    )


def group_overrides(chunks: list[Any], optim: OptimConfig) -> dict[ParamKey, dict[str, Any]]:
    """What `get_megatron_optimizer` takes as `config_overrides`: one entry for each combination of options."""
    found = {options_of(name, p, optim) for chunk in chunks for name, p in chunk.named_parameters() if p.requires_grad}

    def having(options: tuple[tuple[str, Any], ...]) -> ParamKey:
        def has(parameter: torch.nn.Parameter, name: str) -> bool:
            return options_of(name, parameter, optim) == options

        return ParamKey(with_name_predicate=ParamWithNamePredicate(name=repr(options), fn=has))

    return {having(options): dict(options) for options in sorted(found)}
