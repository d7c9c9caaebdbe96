"""`glmv train`: from a Config to an exit code. Starts this machine's ranks when the layout needs several and no
launcher did."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import Config
from megatron_glmv.config.validate import validate
from megatron_glmv.parallel.launch import RankContext, detect, launch
from megatron_glmv.parallel.topology import Topology
from megatron_glmv.resilience.exit_codes import ExitCode
from megatron_glmv.stages.rundir import resolve_run_dir

PRELOAD = ("megatron_glmv.stages.preload",)


def run(config: Config) -> int:
    """Runs the stage of `config`. Errors that have an exit code are one line on stderr and that code."""
    try:
        context = detect()
        world = context.world if context else None
        validate(config, world)
        if context is not None:
            return run_rank(config, resolve_run_dir(config), context)
        topology = Topology.resolve(config.parallel, None)
        run_dir = resolve_run_dir(config)
        print(f"run directory {run_dir}", flush=True)
        codes = launch(partial(run_rank, config, run_dir), topology.world, preload=PRELOAD)
        return max((int(code or 0) for code in codes), default=0)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"glmv train: {error}", file=sys.stderr, flush=True)
        return int(code)


def run_rank(config: Config, run_dir: Path, context: RankContext) -> int:
    """One rank, from joining the world to the exit code that all ranks agree on."""
    from megatron_glmv.stages import pretrain
    from megatron_glmv.stages.session import open_session

    stages: dict[str, Any] = dict.fromkeys(pretrain.STAGES, pretrain.run)
    if config.stage.name not in stages:
        raise ConfigError("stage.name", config.stage.name, "is not a stage", fix=f"one of {', '.join(stages)}")
    with open_session(config, context) as session:
        return int(stages[config.stage.name](config, run_dir, session))


__all__ = ["ExitCode", "run", "run_rank"]
