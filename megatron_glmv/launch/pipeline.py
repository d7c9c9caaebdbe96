"""A chain of runs, each starting from the newest checkpoint of the one before. What it consists of is data:

conf/pipeline/NAME.yaml
  stages:
    - {name: pretrain, overrides: [experiment=tiny_pretrain]}
    - {name: sft, overrides: [experiment=tiny_sft]}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import conf_dir
from megatron_glmv.launch.fields import check_name
from megatron_glmv.launch.submit import Options, Prepared, prepare


def prepare_pipeline(name: str, overrides: Sequence[str], options: Options) -> list[Prepared]:
    """The jobs in order; `overrides` go to every stage, or to one as STAGE:key=value. `run_dir` holds a directory for
    each stage. Raises ConfigError, before anything is submitted."""
    stages = read(name)
    names = [stage["name"] for stage in stages]
    common: list[str] = []
    own: dict[str, list[str]] = {label: [] for label in names}
    base = f"runs/{name}/{datetime.now():%Y%m%d-%H%M%S}"
    for override in overrides:
        label, colon, rest = override.partition(":")
        if override.startswith("run_dir="):
            base = override.removeprefix("run_dir=")
        elif colon and label in own:
            own[label].append(rest)
        else:
            common.append(override)
    prepared: list[Prepared] = []
    for stage in stages:
        label = stage["name"]
        chosen = [*stage.get("overrides", []), *common, *own[label], f"run_dir={Path(base, label).absolute()}"]
        if prepared and stage.get("continues", True):
            chosen.append(f"init_from={prepared[-1].job.run_dir}")
        prepared.append(
            prepare(chosen, options if not prepared else dataclasses.replace(options, after=(), hold=False))
        )
    return prepared


def read(name: str) -> list[dict[str, Any]]:
    """The stages of a pipeline, checked. Raises ConfigError."""
    check_name("pipeline", name)
    folder = conf_dir() / "pipeline"
    try:
        tree = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ConfigError("pipeline", name, "no such pipeline", f"there are: {there}") from None
    stages: list[dict[str, Any]] = tree["stages"]
    for stage in stages:
        if unknown := {*stage} - {"name", "overrides", "continues"}:
            raise ConfigError("pipeline", name, f"unknown keys {sorted(unknown)}", "name, overrides, continues")
        check_name(f"pipeline {name}: name", str(stage.get("name", "")))
    if len({stage["name"] for stage in stages}) < len(stages):
        raise ConfigError("pipeline", name, "two stages have one name")
    return stages
