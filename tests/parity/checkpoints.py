"""A checkpoint of ours from a tiny one of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from helpers import tiny
from safetensors.torch import load_file

from megatron_glmv.checkpoint.hf.mapping import name_mapping
from megatron_glmv.config.load import to_json
from megatron_glmv.config.schema import ModelConfig, MoEConfig, TextConfig, VisionConfig
from megatron_glmv.stages.session import single_process


def make_checkpoint(hf: Path, out: Path) -> None:
    config = tiny.config(model_config(json.loads((hf / "config.json").read_text())))
    theirs = load_file(hf / "model.safetensors")
    full = name_mapping(config.model).to_ours(theirs)
    with single_process(config) as session:
        from megatron_glmv.checkpoint.manager import CheckpointManager, Identity
        from megatron_glmv.model.build import build_model, sharding_metadata

        chunks = build_model(config, session.groups, backend=session.backend, device=session.device)
        metadata = sharding_metadata(session.groups)
        _fill(chunks[0], full, metadata)
        identity = Identity(model=to_json(config)["model"], tokenizer_fingerprint="none", config_fingerprint="")
        manager = CheckpointManager(out, config.checkpoint, identity, session.groups.topology.to_json(), metadata)
        manager.save(1, chunks, None, {})


@torch.no_grad()
def _fill(chunk: Any, full: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    from megatron_glmv.model.initialise import shards

    left = set(full)
    for shard in shards(chunk.sharded_state_dict(metadata=metadata)):
        if not shard.key.endswith("_extra_state"):
            shard.data.copy_(full[shard.key][shard.global_slice()].view(shard.data.shape))
            left.discard(shard.key)
    assert not left


def model_config(hf: dict[str, Any]) -> ModelConfig:
    text, vision = hf["text_config"], hf["vision_config"]
    rope, experts = text["rope_parameters"], text.get("n_routed_experts")
    moe = None
    if experts:
        width = text["moe_intermediate_size"]
        moe = MoEConfig(
            experts=experts,
            topk=text["num_experts_per_tok"],
            ffn=width,
            shared_ffn=width * text["n_shared_experts"],
            first_dense=text["first_k_dense_replace"],
            scaling=float(text["routed_scaling_factor"]),
        )
    return ModelConfig(
        name="reference",
        text=TextConfig(
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            head_dim=text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
            ffn=text["intermediate_size"],
            vocab=text["vocab_size"],
            mrope_section=tuple(rope["mrope_section"]),
            rotary_percent=rope["partial_rotary_factor"],
            rotary_interleaved=moe is None,
            rope_theta=float(rope["rope_theta"]),
            sandwich_norm=moe is None,
            norm_eps=text["rms_norm_eps"],
            moe=moe,
        ),
        vision=VisionConfig(
            depth=vision["depth"],
            hidden=vision["hidden_size"],
            heads=vision["num_heads"],
            ffn=vision["out_hidden_size"],
            merger_ffn=vision["intermediate_size"],
            patch=vision["patch_size"],
            temporal_patch=vision["temporal_patch_size"],
            merge=vision["spatial_merge_size"],
            position_grid=vision["image_size"] // vision["patch_size"],
            norm_eps=vision["rms_norm_eps"],
        ),
    )
