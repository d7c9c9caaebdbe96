"""Which modules a layer is built from: the seam between Transformer Engine on GPUs and plain torch anywhere.

Both back ends give the same *sharded* keys, shapes and meaning, so that a checkpoint moves between them; module names
differ (TE fuses the norm into the linear layer behind it).
"""

from __future__ import annotations

from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import BackendSpecProvider, LocalSpecProvider
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec_for_backend
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.multi_token_prediction import (
    MultiTokenPredictionBlock,
    MultiTokenPredictionBlockSubmodules,
    MultiTokenPredictionLayerSubmodules,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megatron_glmv.config.schema import PrecisionConfig, TextConfig
from megatron_glmv.model.attention import CoreAttention, PackedSelfAttention
from megatron_glmv.model.norm import RMSNorm
from megatron_glmv.model.prediction import PredictionLayer
from megatron_glmv.model.router import BalancedRouter
from megatron_glmv.model.sandwich import SandwichLayer
from megatron_glmv.precision.emulate import emulated_linears
from megatron_glmv.precision.fp8 import emulated, in_bf16


class TorchSpecProvider(LocalSpecProvider):
    """megatron-core's local layers, with our RMSNorm and core attention in place of two that refuse what GLM needs."""

    def layer_norm(self, rms_norm: bool = False, for_qk: bool = False) -> type:
        return RMSNorm

    def core_attention(self) -> type:
        return CoreAttention


class EmulatedFp8SpecProvider(TorchSpecProvider):
    """The torch layers with linear layers and experts in emulated FP8."""

    def __init__(self, recipe: str) -> None:
        self.column, self.row = emulated_linears(recipe)

    def column_parallel_linear(self) -> type:
        return self.column

    def row_parallel_linear(self) -> type:
        return self.row

    def grouped_mlp_modules(self, *_: Any, **__: Any) -> tuple[type, MLPSubmodules]:
        return SequentialMLP, MLPSubmodules(linear_fc1=self.column, linear_fc2=self.row)


def provider(name: str) -> BackendSpecProvider:
    """`torch` or `te`."""
    if name == "te":
        from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

        return TESpecProvider()
    return TorchSpecProvider()


def _attention_spec(backend: Any, mask: AttnMaskType) -> ModuleSpec:
    fused = backend.fuse_layernorm_and_linear()
    return ModuleSpec(
        module=PackedSelfAttention,
        params={"attn_mask_type": mask},
        submodules=SelfAttentionSubmodules(
            linear_qkv=backend.column_parallel_layer_norm_linear() if fused else backend.column_parallel_linear(),
            core_attention=backend.core_attention(),
            linear_proj=backend.row_parallel_linear(),
            q_layernorm=IdentityOp,
            k_layernorm=IdentityOp,
        ),
    )


def _layer_spec(backend: Any, mask: AttnMaskType, mlp: ModuleSpec, layer: type, moe: bool) -> ModuleSpec:
    fused = backend.fuse_layernorm_and_linear()
    norm = backend.layer_norm(rms_norm=True)
    # Keys as the fused layers have them: the norm belongs to the linear layer behind it, except before a router.
    keys = {} if fused else {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if not fused and not moe:
        keys["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    return ModuleSpec(
        module=layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=IdentityOp if fused else norm,
            self_attention=_attention_spec(backend, mask),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm if moe or not fused else IdentityOp,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
            sharded_state_dict_keys_map=keys,
        ),
    )


def dense_mlp_spec(backend: Any) -> ModuleSpec:
    fused = backend.fuse_layernorm_and_linear()
    fc1 = backend.column_parallel_layer_norm_linear() if fused else backend.column_parallel_linear()
    return ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=fc1, linear_fc2=backend.row_parallel_linear()))


def decoder_block_spec(
    text: TextConfig,
    backend: BackendSpecProvider,
    first_layer: int,
    layers: int,
    precision: PrecisionConfig | None = None,
) -> TransformerBlockSubmodules:
    """Specs of decoder layers `first_layer` .. `first_layer + layers - 1` (counted from 0 over the whole model).

    Where `precision` asks for emulated FP8, the layers that do not stay in bf16 are of that kind.
    """
    providers = [backend] * layers
    if precision is not None and emulated(precision):
        recipe, low = precision.fp8_recipe, EmulatedFp8SpecProvider(precision.fp8_recipe)
        kept = [in_bf16(first_layer + i, text.layers, recipe) for i in range(layers)]
        providers = [backend if stays else low for stays in kept]
    specs = [_decoder_layer_spec(text, one, first_layer + i) for i, one in enumerate(providers)]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=backend.layer_norm(rms_norm=True))


def _decoder_layer_spec(text: TextConfig, backend: Any, number: int) -> ModuleSpec:
    layer = SandwichLayer if text.sandwich_norm else TransformerLayer
    if text.moe is None or number < text.moe.first_dense:
        return _layer_spec(backend, AttnMaskType.causal, dense_mlp_spec(backend), layer, moe=False)
    mlp = get_moe_module_spec_for_backend(
        backend=backend, num_experts=text.moe.experts, moe_grouped_gemm=backend.fuse_layernorm_and_linear()
    )
    mlp.submodules.router = BalancedRouter
    return _layer_spec(backend, AttnMaskType.causal, mlp, layer, moe=True)


def prediction_block_spec(text: TextConfig, backend: Any) -> ModuleSpec:
    """One prediction layer (model/prediction.py), in the run's bf16 also where the decoder's layers are in FP8: it is
    one of 47, and its projection joins two normed inputs of different size."""
    norm = backend.layer_norm(rms_norm=True)
    layer = ModuleSpec(
        module=PredictionLayer,
        submodules=MultiTokenPredictionLayerSubmodules(
            enorm=norm,
            hnorm=norm,
            eh_proj=backend.column_parallel_linear(),
            transformer_layer=_decoder_layer_spec(text, backend, text.layers),
            layer_norm=norm,
        ),
    )
    return ModuleSpec(
        module=MultiTokenPredictionBlock, submodules=MultiTokenPredictionBlockSubmodules(layer_specs=[layer])
    )


def vision_block_spec(depth: int, backend: BackendSpecProvider) -> TransformerBlockSubmodules:
    """Blocks that see their whole frame; the norm behind the last is the encoder's post_layernorm."""
    spec = _layer_spec(backend, AttnMaskType.no_mask, dense_mlp_spec(backend), TransformerLayer, moe=False)
    return TransformerBlockSubmodules(layer_specs=[spec] * depth, layer_norm=backend.layer_norm(rms_norm=True))
