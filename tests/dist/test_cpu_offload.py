"""Why `optim.cpu_offload` is refused: what megatron-core's hybrid optimizer does with weights.

HybridDeviceOptimizer keeps a share of Adam's states, and the updates of their weights, on the CPU. Pinned down for the
version in constraints.txt; when one of these tests fails, a later version does better, and the option may be offered:

1. Weights that are put into a model (`init_from`, a resume without optimizer state) have to get into the optimizer's
   fp32 copies, or the next update writes those of before back. `reload_model_params` returns early with this optimizer.
2. It steps parameters on a GPU only (it looks up each one's copy, and on a CPU there is none), so that no test of its
   numbers, or of a resume, can run where this suite runs.

Not covered: a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from dist.checkpoint_job import Job
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import Config
from megatron_glmv.config.validate import validate


def _optimizer(job: Job, offload: bool) -> Any:
    """Of a bf16 run: ours, or megatron-core's hybrid one in its place."""
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer

    if not offload:
        return job.trainer.optimizer
    settings = OptimizerConfig(
        optimizer="adam",
        lr=1e-3,
        bf16=True,
        params_dtype=torch.bfloat16,
        use_distributed_optimizer=True,
        optimizer_cpu_offload=True,
        optimizer_offload_fraction=1.0,
    )
    made = get_megatron_optimizer(settings, job.trainer.chunks, use_gloo_process_groups=False)
    assert all(isinstance(part.optimizer, HybridDeviceOptimizer) for part in made.chained_optimizers)
    return made


def _renewed(config: Config, offload: bool) -> tuple[float, str]:
    """The share of the optimizer's fp32 weights that follow the model's when these are others, and how a step ends."""
    job = Job(config)
    optimizer = _optimizer(job, offload)
    mains = [p for group in optimizer.param_groups for p in group["params"]]
    before = [main.detach().clone() for main in mains]
    with torch.no_grad():
        for chunk in job.trainer.chunks:
            for weight in chunk.parameters():
                weight.add_(1.0)  # as init_from puts others there
    optimizer.reload_model_params()
    followed = sum(int((main != old).sum()) for main, old in zip(mains, before, strict=True))
    for chunk in job.trainer.chunks:
        chunk.zero_grad_buffer()
    try:
        optimizer.step()
        ended = "done"
    except KeyError as error:
        ended = type(error).__name__
    return followed / sum(old.numel() for old in before), ended


def test_it_does_not_take_over_weights_that_are_loaded_and_does_not_run_here() -> None:
    config = tiny.config(precision="bf16")
    assert run_ranks(_renewed, 1, config, False)[0] == (1.0, "done")
    assert run_ranks(_renewed, 1, config, True)[0] == (0.0, "KeyError")


def test_the_option_is_refused_with_the_reason() -> None:
    config = tiny.config()
    validate(config, None)
    with pytest.raises(
        ConfigError, match=r"optim\.cpu_offload=0\.5.*weights of before a load.*try optim\.cpu_offload=0"
    ):
        validate(replace(config, optim=replace(config.optim, cpu_offload=0.5)), None)
