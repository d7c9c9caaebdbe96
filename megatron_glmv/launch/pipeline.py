"""A chain of runs, each starting from the newest checkpoint of the one before. What it consists of is data:

conf/pipeline/NAME.yaml
  stages:
    - {name: import, convert: import}     # a step that only runs where it is asked for: import:hf=DIR
    - {name: pretrain, overrides: [experiment=tiny_pretrain]}
    - {name: sft, overrides: [experiment=tiny_sft]}
    - {name: export, convert: export}     # export:enabled=true, or export:out=DIR
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import compose, conf_dir
from megatron_glmv.config.schema import Config
from megatron_glmv.launch.conversion import OPTIONS as CONVERSIONS
from megatron_glmv.launch.conversion import Conversion, prepare_conversion
from megatron_glmv.launch.fields import check_name
from megatron_glmv.launch.submit import Options, Prepared, prepare

KEYS = {"name", "overrides", "continues"}
CONVERSION_KEYS = {"name", "convert", "enabled", "options"}


def prepare_pipeline(name: str, overrides: Sequence[str], options: Options) -> list[Prepared | Conversion]:
    """The jobs in order; `overrides` go to every training stage, or to one step as NAME:key=value. `run_dir` holds a
    directory for each step. Raises ConfigError, before anything is submitted; it names the step."""
    stages = read(name)
    common: list[str] = []
    own: dict[str, list[str]] = {stage["name"]: [] for stage in stages}
    base = Path("runs", name, f"{datetime.now():%Y%m%d-%H%M%S}")
    for override in overrides:
        label, colon, rest = override.partition(":")
        if override.startswith("run_dir="):
            base = Path(override.removeprefix("run_dir="))
        elif colon and label in own:
            own[label].append(rest)
        else:
            common.append(override)
    base = base.absolute()
    trained = [[*stage["overrides"], *common] for stage in stages if "convert" not in stage]
    prepared: list[Prepared | Conversion] = []
    start: Path | None = None
    for stage in stages:
        label = stage["name"]
        ours = dataclasses.replace(options, after=(), hold=False) if prepared else options
        try:
            if "convert" not in stage:
                chosen = [*stage["overrides"], *common, *own[label], f"run_dir={base / label}"]
                if start is not None and stage.get("continues", True):
                    chosen.append(f"init_from={start}")
                one = prepare(chosen, ours)
                _prompts_are_there(one.config)
                prepared.append(one)
                start = base / label
            elif (settings := _settings(stage, own[label])) is not None:
                cluster = compose([*trained[0], *[o for o in own[label] if _of_cluster(o)]]).cluster
                if (stage["convert"] == "export") == (start is None):
                    raise ConfigError("convert", stage["convert"], "import comes before every stage, export behind one")
                made = prepare_conversion(label, stage["convert"], settings, cluster, base / label, start, ours)
                prepared.append(made)
                start = start or made.out
        except ConfigError as error:
            raise ConfigError(f"{label}:{error.option}", error.value, error.message, error.fix, error.legal) from error
    return prepared


def _of_cluster(override: str) -> bool:
    return override.startswith(("cluster=", "cluster."))


def _settings(stage: dict[str, Any], own: Sequence[str]) -> dict[str, str] | None:
    """Options of a conversion from the file and the command line; None where it is not asked for."""
    settings = {key: str(value) for key, value in (stage.get("options") or {}).items() if value is not None}
    settings |= dict(override.partition("=")[::2] for override in own if not _of_cluster(override))
    enabled = settings.pop("enabled", str(stage.get("enabled", False) or bool(settings))).lower()
    if enabled not in ("true", "false"):
        raise ConfigError("enabled", enabled, "is neither true nor false")
    return settings if enabled == "true" else None


def _prompts_are_there(config: Config) -> None:
    """RLCS is the last of days: what it asks has to be there on the first."""
    if config.stage.name != "rlcs":
        return
    for name, path in (("rl.prompts", config.rl.prompts), ("rl.heldout", config.rl.heldout)):
        if path and not Path(path).is_file():
            raise ConfigError(name, path, "there is no such file", "give JSON Lines of prompts with answers")


def read(name: str) -> list[dict[str, Any]]:
    """The steps of a pipeline, checked. Raises ConfigError."""
    check_name("pipeline", name)
    folder = conf_dir() / "pipeline"
    try:
        tree = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ConfigError("pipeline", name, "no such pipeline", f"there are: {there}") from None
    stages: list[dict[str, Any]] = tree["stages"]
    for stage in stages:
        known = CONVERSION_KEYS if "convert" in stage else KEYS
        if unknown := {*stage} - known:
            raise ConfigError("pipeline", name, f"unknown keys {sorted(unknown)}", ", ".join(sorted(known)))
        if stage.get("convert", "import") not in CONVERSIONS:
            raise ConfigError("pipeline", name, f"cannot convert {stage['convert']!r}", " or ".join(CONVERSIONS))
        if "convert" not in stage and not stage.get("overrides"):
            raise ConfigError("pipeline", name, f"stage {stage.get('name')!r} has no overrides", "experiment=NAME")
        check_name(f"pipeline {name}: name", str(stage.get("name", "")))
    if len({stage["name"] for stage in stages}) < len(stages):
        raise ConfigError("pipeline", name, "two stages have one name")
    return stages
