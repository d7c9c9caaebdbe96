"""From a Config to the model chunks of this rank."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_glmv.config.schema import Config
from megatron_glmv.model.config import text_transformer_config, vision_transformer_config
from megatron_glmv.model.glmv import GLMV
from megatron_glmv.model.initialise import initialise
from megatron_glmv.model.specs import decoder_block_spec, prediction_block_spec, provider
from megatron_glmv.parallel.groups import Groups
from megatron_glmv.precision.fp8 import emulated


def sharding_metadata(groups: Groups) -> dict[str, Any]:
    """How sharded state dicts are made everywhere. The first two let a checkpoint move between layouts: optimizer state
    has the shapes of the model, and one optimizer (no experts spread) has the same keys as two chained ones."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": groups.dp_cp,
    }


def build_chunk(config: Config, groups: Groups, text_config: Any, backend_name: str, vp_stage: int | None) -> GLMV:
    topology = groups.topology
    backend = provider(backend_name)
    stage = groups.pp.rank()
    first_vp, last_vp = vp_stage in (None, 0), vp_stage in (None, topology.virtual_pipeline - 1)
    spec = decoder_block_spec(
        config.model.text,
        backend,
        first_layer=get_transformer_layer_offset(text_config, vp_stage, stage),
        layers=get_num_layers_to_build(text_config, vp_stage, stage),
        precision=config.precision,
    )
    last = groups.last_stage and last_vp
    return GLMV(
        config.model,
        text_config,
        vision_transformer_config(config, config.model.vision),
        spec,
        backend,
        groups,
        pre_process=groups.first_stage and first_vp,
        post_process=last,
        prediction_spec=prediction_block_spec(config.model.text, backend) if last and config.model.mtp.layers else None,
        vp_stage=vp_stage,
        encoder_data=config.parallel.encoder_data,
        encoder_tensor=config.parallel.encoder_tensor,
    )


def build_model(
    config: Config, groups: Groups, *, backend: str, device: torch.device, fp8: dict[str, Any] | None = None
) -> list[Any]:
    """The chunks of this rank in order (several with virtual pipeline stages), initialised, in the run's precision.

    Not wrapped in DDP yet. `backend`: torch or te. `fp8`: what precision/fp8.py's transformer_fields gives; with FP8
    asked for and neither these fields nor emulation, the model would silently be a bf16 one.
    """
    if config.precision.name == "fp8" and not fp8 and not emulated(config.precision):
        raise ValueError("precision=fp8 with Transformer Engine needs the fields of precision.fp8.transformer_fields")
    text_config = text_transformer_config(config, groups.topology, fp8)
    virtual = groups.topology.virtual_pipeline
    chunks: list[Any] = []
    for vp_stage in range(virtual) if virtual > 1 else [None]:
        chunk = build_chunk(config, groups, text_config, backend, vp_stage)
        initialise(chunk, config.train.seed, config.model.text.init_std, sharding_metadata(groups))
        chunk.to(device)
        chunks.append(Float16Module(text_config, chunk) if text_config.bf16 else chunk)
    return chunks
