"""FP8 by Transformer Engine, emulated by name, or a refusal. megatron-core without Transformer Engine ignores its fp8
options silently."""

from __future__ import annotations

from typing import Any

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import PrecisionConfig
from megatron_glmv.platform.device import Platform

RECIPES: dict[str, dict[str, Any]] = {
    # Scales from the maxima of the last steps (TE DelayedScaling).
    "delayed": {
        "fp8": "hybrid",
        "fp8_recipe": "delayed",
        "fp8_amax_history_len": 1024,
        "fp8_amax_compute_algo": "max",
    },
    # One scale a tensor, from the tensor itself.
    "tensorwise": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    # One scale a 1 x 128 or 128 x 128 block, gradients in E4M3 too (arXiv 2412.19437, section 3.3).
    "blockwise": {"fp8": "e4m3", "fp8_recipe": "blockwise"},
}

EDGE_LAYERS = {"delayed": 0, "tensorwise": 1, "blockwise": 1}
"""Layers at each end of the decoder that stay in bf16. megatron-core has none with delayed scaling: Transformer Engine
keeps its histories for all layers of an FP8 region together."""

KEPT = (
    ("routers", "scores are compared: rounding would send tokens elsewhere (computed in fp32)"),
    ("embedding and output layer", "a token's row is looked up; logits decide between close alternatives"),
    ("norms, attention scores and softmax", "no matrix product with weights"),
    ("vision encoder and merger", "a few per cent of the work, and pixels spread widely"),
)
"""What stays in higher precision whoever computes FP8, and why."""


def emulated(precision: PrecisionConfig) -> bool:
    return precision.name == "fp8" and precision.fp8_backend == "emulate"


def in_bf16(layer: int, layers: int, recipe: str) -> bool:
    """True of a decoder layer (counted from 0 over the whole model) that stays in bf16."""
    return not EDGE_LAYERS[recipe] <= layer < layers - EDGE_LAYERS[recipe]


def describe(precision: PrecisionConfig) -> list[str]:
    """Lines for the log of a run: who computes FP8, and what does not. Empty without FP8."""
    if precision.name != "fp8":
        return []
    who = f"FP8 by Transformer Engine, recipe {precision.fp8_recipe}"
    if emulated(precision):
        who = (
            f"FP8 is EMULATED, recipe {precision.fp8_recipe}: operands of the decoder's linear layers and experts are "
            "rounded to FP8 and multiplied in fp32; says nothing about speed or memory"
        )
    edges = EDGE_LAYERS[precision.fp8_recipe]
    ends = (("the first and the last decoder layer", "their inputs and outputs have the widest range"),) * edges
    return [who, *(f"not in FP8: {what} ({why})" for what, why in (*ends, *KEPT))]


def transformer_fields(precision: PrecisionConfig, backend: str, platform: Platform) -> dict[str, Any]:
    """Fields of megatron-core's TransformerConfig for the decoder; empty without FP8, and where it is emulated
    (precision/emulate.py). Raises ConfigError where FP8 cannot run.
    """
    if precision.name != "fp8":
        return {}
    if precision.fp8_recipe not in RECIPES:
        raise ConfigError(
            "precision.fp8_recipe", precision.fp8_recipe, f"is none of {', '.join(RECIPES)}", fix="tensorwise"
        )
    if emulated(precision):
        if backend != "torch":
            raise ConfigError("backend", backend, "emulated FP8 is in the torch layers", fix="backend=torch")
        return {}
    if backend != "te":
        reason = "needs a CUDA GPU" if platform.name != "cuda" else "needs Transformer Engine, which is not usable here"
        raise ConfigError(
            "precision.fp8_backend",
            precision.fp8_backend,
            f"{reason}; FP8 would be ignored silently",
            fix="precision.fp8_backend=emulate, or precision=bf16",
        )
    edges = EDGE_LAYERS[precision.fp8_recipe]
    return {
        **RECIPES[precision.fp8_recipe],
        "first_last_layers_bf16": edges > 0,
        "num_layers_at_start_in_bf16": edges,
        "num_layers_at_end_in_bf16": edges,
    }
