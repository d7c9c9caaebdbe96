"""megatron-core's DDP and distributed optimizer around the model chunks."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

from megatron_glmv.config.schema import Config, OptimConfig, ParallelConfig, PrecisionConfig


def wrap_ddp(chunks: list[Any], parallel: ParallelConfig, precision: PrecisionConfig) -> list[Any]:
    """Gradient buffers and their reduction over data-parallel ranks. All weights must be in place: buffers copy
    them."""
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=precision.grad_reduce_fp32,
        use_distributed_optimizer=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
    )
    return [
        DistributedDataParallel(chunk.config, ddp, chunk, disable_bucketing=i > 0) for i, chunk in enumerate(chunks)
    ]


def build_optimizer(optim: OptimConfig, config: Config, chunks: list[Any]) -> Any:
    """AdamW, its states sharded over the data-parallel ranks; megatron-core leaves biases and norms without decay."""
    low = config.precision.name != "fp32"
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            adam_beta1=optim.beta1,
            adam_beta2=optim.beta2,
            adam_eps=optim.eps,
            clip_grad=optim.clip_grad,
            bf16=low,
            params_dtype=torch.bfloat16 if low else torch.float32,
            use_distributed_optimizer=True,
            overlap_param_gather=config.parallel.overlap_param_gather,
        ),
        chunks,
        use_gloo_process_groups=False,
    )
    for group in optimizer.param_groups:
        # `wd_mult` is applied by Megatron-LM's scheduler, not by megatron-core's optimizer.
        group["weight_decay"] = optim.weight_decay * group["wd_mult"]
    return optimizer


def set_learning_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_mult", 1.0)
