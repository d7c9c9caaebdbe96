"""`glmv train`: from a Config to an exit code. Starts this machine's ranks when the layout needs several and no
launcher did."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import Config
from megatron_glmv.config.validate import validate
from megatron_glmv.parallel.launch import RankContext, detect, launch
from megatron_glmv.parallel.topology import Topology
from megatron_glmv.resilience.exit_codes import ExitCode, say_exit_code
from megatron_glmv.stages.rundir import check_resume, resolve_run_dir
from megatron_glmv.train.sinks import require

PRELOAD = ("megatron_glmv.stages.preload",)


def run(config: Config) -> int:
    """Runs the stage of `config`. Errors that have an exit code are one line on stderr and that code."""
    try:
        context = detect()
        world = context.world if context else None
        validate(config, world)
        require(config.tracking.sinks)
        if context is not None:
            run_dir = resolve_run_dir(config)
            check_resume(config, run_dir)
            return run_rank(config, run_dir, context)
        topology = Topology.resolve(config.parallel, None)
        run_dir = resolve_run_dir(config)
        check_resume(config, run_dir)
        print(f"run directory {run_dir}", flush=True)
        codes = launch(partial(run_rank, config, run_dir), topology.world, preload=PRELOAD)
        return max((int(code or 0) for code in codes), default=0)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        say_exit_code(int(code), str(error))
        print(f"glmv train: {error}", file=sys.stderr, flush=True)
        return int(code)


def _stage(name: str) -> Callable[[Config, Path, Any], int]:
    """What runs a stage. Only its own modules are imported: those of RLCS cost a training run 2 % more to start."""
    from megatron_glmv.stages import pretrain

    if name in pretrain.STAGES:
        return pretrain.run
    if name == "rlcs":
        from megatron_glmv.stages import rlcs

        return rlcs.run
    raise ConfigError("stage.name", name, "is not a stage", fix=f"one of {', '.join((*pretrain.STAGES, 'rlcs'))}")


def run_rank(config: Config, run_dir: Path, context: RankContext) -> int:
    """One rank, from joining the world to the exit code that all ranks agree on."""
    from megatron_glmv.stages.session import open_session

    stage = _stage(config.stage.name)
    with open_session(config, context) as session:
        try:
            return int(stage(config, run_dir, session))
        except Exception as error:  # before the groups close and the peers see it
            say_exit_code(ExitCode.HANG if lost_peer(error) else getattr(error, "exit_code", 1), str(error))
            raise


def lost_peer(error: Exception) -> bool:
    """Whether it only says that another rank is gone (gloo raises a plain RuntimeError); its node may be."""
    import torch.distributed as dist

    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and any(w in str(error) for w in words))


__all__ = ["ExitCode", "run", "run_rank"]
