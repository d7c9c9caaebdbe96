"""FP8 by Transformer Engine, or a refusal. megatron-core without Transformer Engine ignores its fp8 options
silently."""

from __future__ import annotations

from typing import Any

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import PrecisionConfig
from megatron_glmv.platform.device import Platform

RECIPES: dict[str, dict[str, Any]] = {
    # Scales from the maxima of the last steps (TE DelayedScaling).
    "delayed": {"fp8_recipe": "delayed", "fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"},
    # One scale a tensor, from the tensor itself.
    "tensorwise": {"fp8_recipe": "tensorwise"},
    # One scale a 1 x 128 or 128 x 128 block (arXiv 2412.19437, section 3.3).
    "blockwise": {"fp8_recipe": "blockwise"},
}


def transformer_fields(precision: PrecisionConfig, backend: str, platform: Platform) -> dict[str, Any]:
    """Fields of megatron-core's TransformerConfig for the decoder; empty without FP8.

    The first and the last layer stay in bf16: their inputs and outputs have the widest range. So do, by megatron-core's
    construction, the router, the embedding and the output layer. Raises ConfigError where FP8 cannot run.
    """
    if precision.name != "fp8":
        return {}
    if precision.fp8_recipe not in RECIPES:
        raise ConfigError(
            "precision.fp8_recipe", precision.fp8_recipe, f"is none of {', '.join(RECIPES)}", fix="tensorwise"
        )
    if backend != "te":
        reason = "needs a CUDA GPU" if platform.name != "cuda" else "needs Transformer Engine, which is not usable here"
        raise ConfigError("precision.name", "fp8", f"{reason}; it would be ignored silently", fix="precision=bf16")
    edges = {"first_last_layers_bf16": True, "num_layers_at_start_in_bf16": 1, "num_layers_at_end_in_bf16": 1}
    return {"fp8": "hybrid", **RECIPES[precision.fp8_recipe], **edges}
