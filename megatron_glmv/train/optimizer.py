"""megatron-core's DDP and distributed optimizer around the model chunks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

from megatron_glmv.config.schema import Config, OptimConfig, ParallelConfig, PrecisionConfig
from megatron_glmv.model.freeze import part_of
from megatron_glmv.train.muon import Layout, MuonSettings, MuonWithAdamW
from megatron_glmv.train.orthogonal import matrices_of
from megatron_glmv.train.ownership import matrices_in
from megatron_glmv.train.param_groups import by_muon, group_overrides, inner_name


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
    """megatron-core's distributed optimizer: states sharded over the data-parallel ranks. Collective."""
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
        config_overrides=group_overrides(chunks, optim),
        use_gloo_process_groups=False,
    )
    for group in optimizer.param_groups:
        # `wd_mult` is applied by Megatron-LM's scheduler, not by megatron-core's optimizer.
        group["weight_decay"] = optim.weight_decay * group["wd_mult"]
    if optim.name == "muon":
        _put_muon_in(optimizer, config, chunks)
    return optimizer


def _put_muon_in(optimizer: Any, config: Config, chunks: list[Any]) -> None:
    """Replaces the AdamW inside each distributed optimizer (of the experts, and of all else)."""
    optim = config.optim
    bf16 = config.precision.name != "fp32" if optim.muon_precision == "auto" else optim.muon_precision == "bf16"
    settings = MuonSettings(
        momentum=optim.muon_momentum,
        nesterov=optim.muon_nesterov,
        steps=optim.muon_steps,
        rms=optim.muon_rms,
        measured=optim.muon_scale == "measured",
        dtype=torch.bfloat16 if bf16 else torch.float32,
    )
    names = {p: inner_name(name) for chunk in chunks for name, p in chunk.named_parameters() if p.requires_grad}
    text, groups = config.model.text, _groups_of(chunks[0])

    def parts(parameter: torch.nn.Parameter) -> tuple[torch.Tensor | None, ...] | None:
        name = names[parameter]
        if not by_muon(name, parameter, optim):
            return None
        heads = (text.heads // text.kv_heads, text.head_dim)
        if part_of(name) != "decoder":
            heads = (1, config.model.vision.head_dim)
        return tuple(matrices_of(name, parameter.shape[0], *heads))

    for part in optimizer.chained_optimizers:
        if part.is_stub_optimizer:
            continue
        expert = any(group["is_expert_parallel"] for group in part.optimizer.param_groups)
        tensor = groups.expt_tp if expert else groups.tp
        matrices = matrices_in(part.buffers, part.data_parallel_group.size(), parts, partial(_sharded_dim, tensor))
        if not matrices:
            continue
        shard_of = {
            model: part.optimizer.param_groups[group]["params"][order]
            for model, (group, order) in part.model_param_group_index_map.items()
        }
        layout = Layout(matrices, shard_of, part.data_parallel_group, tensor)
        part.optimizer = MuonWithAdamW(part.optimizer, layout, settings)


def _sharded_dim(tensor: Any, parameter: torch.nn.Parameter) -> int | None:
    sharded = tensor.size() > 1 and getattr(parameter, "tensor_model_parallel", False)
    return int(getattr(parameter, "partition_dim")) if sharded else None  # noqa: B009


def _groups_of(chunk: Any) -> Any:
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk.pg_collection


def set_learning_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_mult", 1.0)
