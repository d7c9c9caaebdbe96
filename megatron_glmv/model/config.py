"""Our model and parallel options as megatron-core's TransformerConfig."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_glmv.config.pipeline_split import chunk_layers
from megatron_glmv.config.schema import Config, TextConfig, VisionConfig
from megatron_glmv.parallel.topology import Topology

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.bfloat16}


def leave_as_is(weight: torch.Tensor) -> torch.Tensor:
    """Initialisation that does nothing; model/initialise.py fills the weights afterwards.

    `perform_initialization=False` would also leave out the marks by which megatron-core tells a shard from a duplicate,
    and the gradient norm would be wrong under tensor parallelism.
    """
    return weight


def _common(config: Config) -> dict[str, Any]:
    dtype = DTYPES[config.precision.name]
    return {
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "bias_dropout_fusion": False,
        "bias_activation_fusion": False,
        "masked_softmax_fusion": False,
        "gradient_accumulation_fusion": False,
        "apply_rope_fusion": False,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        # Sum of token losses divided by one global weight: the same for any split of the batch.
        "calculate_per_token_loss": True,
        "init_method": leave_as_is,
        "output_layer_init_method": leave_as_is,
        "embedding_init_method": leave_as_is,
        "hetereogenous_dist_checkpoint": True,  # a layer's number is part of its key, in dense models too
    }


def _moe(text: TextConfig, bias_moves: bool) -> dict[str, Any]:
    moe = text.moe
    if moe is None:
        return {}
    return {
        "num_moe_experts": moe.experts,
        "moe_ffn_hidden_size": moe.ffn,
        "moe_shared_expert_intermediate_size": moe.shared_ffn,
        "moe_layer_freq": [int(i >= moe.first_dense) for i in range(text.layers)],
        "moe_router_topk": moe.topk,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_bias_update_rate": moe.bias_rate if bias_moves else 0.0,
        "moe_router_topk_scaling_factor": moe.scaling,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",  # model/router.py computes the balance loss
        "moe_aux_loss_coeff": 0.0,
        "moe_token_dispatcher_type": "alltoall",
    }


def text_transformer_config(config: Config, topology: Topology, fp8: dict[str, Any] | None = None) -> TransformerConfig:
    """The decoder's. `fp8`: the recipe fields of precision/fp8.py where FP8 is used."""
    text, parallel = config.model.text, config.parallel
    interleaved = topology.virtual_pipeline > 1
    recompute: dict[str, Any] = {}
    if config.train.recompute == "full":
        recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    elif config.train.recompute == "selective":
        recompute = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    made = TransformerConfig(
        **_common(config),
        **_moe(text, config.stage.bias_moves),
        moe_router_fusion=config.train.moe_router_fusion,
        moe_permute_fusion=config.train.moe_permute_fusion,
        **recompute,
        **(fp8 or {}),
        num_layers=text.layers,
        mtp_num_layers=config.model.mtp.layers or None,
        hidden_size=text.hidden,
        num_attention_heads=text.heads,
        num_query_groups=text.kv_heads,
        kv_channels=text.head_dim,
        ffn_hidden_size=text.ffn,
        add_qkv_bias=True,
        layernorm_epsilon=text.norm_eps,
        rotary_interleaved=text.rotary_interleaved,
        mrope_section=list(text.mrope_section),
        tensor_model_parallel_size=topology.tensor,
        pipeline_model_parallel_size=topology.pipeline,
        virtual_pipeline_model_parallel_size=topology.virtual_pipeline if interleaved else None,
        pipeline_model_parallel_layout=_pipeline_layout(config, topology),
        context_parallel_size=topology.context,
        expert_model_parallel_size=topology.expert,
        expert_tensor_parallel_size=topology.expert_tensor,
        sequence_parallel=topology.tensor > 1 if parallel.sequence is None else parallel.sequence,
        # Interleaved on two stages, a batch of p2p calls mixes up forward and backward messages of the same two ranks.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
    )
    made.glmv_balance_loss = text.moe.aux_loss if text.moe else 0.0  # read by model/router.py
    return made


def _pipeline_layout(config: Config, topology: Topology) -> list[list[str]] | None:
    """Uneven stages: megatron-core wants a list of layer kinds per chunk, in the order of the layers."""
    split = chunk_layers(config)
    if split is None:
        return None
    layout = [["decoder"] * layers for layers in split]
    layout[0].insert(0, "embedding")
    layout[-1] += ["mtp"] * config.model.mtp.layers + ["loss"]
    return layout


def vision_transformer_config(config: Config, vision: VisionConfig) -> TransformerConfig:
    """The encoder's: not sharded, whatever the decoder's layout, unless `parallel.encoder_tensor`."""
    wanted, recompute = config.train.recompute_vision, dict[str, Any]()
    if config.train.recompute == "full" if wanted is None else wanted:
        recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return TransformerConfig(
        **_common(config),
        **recompute,
        num_layers=vision.depth,
        hidden_size=vision.hidden,
        num_attention_heads=vision.heads,
        num_query_groups=vision.heads,
        kv_channels=vision.head_dim,
        ffn_hidden_size=vision.ffn,
        add_qkv_bias=False,
        tensor_model_parallel_size=config.parallel.tensor if config.parallel.encoder_tensor else 1,
        layernorm_epsilon=vision.norm_eps,
        rotary_interleaved=False,
    )
