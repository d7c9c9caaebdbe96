"""GLM-4.1V's sandwich norms: x += norm(attention(norm(x))); x += norm(mlp(norm(x))).

megatron-core's layer has no norm behind its sublayers, but it adds their output through a function that it is given:
the norms go in front of that addition. Shapes: S sequence, B batch, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_glmv.model.norm import RMSNorm


class SandwichLayer(TransformerLayer):
    """A transformer layer with `post_self_attn_layernorm` and `post_mlp_layernorm`; [S, B, H] -> [S, B, H]."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.post_self_attn_layernorm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)
        self.post_mlp_layernorm = RMSNorm(config, config.hidden_size, config.layernorm_epsilon)
        self.self_attn_bda: Any = _norm_then_add(self.self_attn_bda, self.post_self_attn_layernorm)
        self.mlp_bda: Any = _norm_then_add(self.mlp_bda, self.post_mlp_layernorm)


def _norm_then_add(add: Callable[..., Any], norm: RMSNorm) -> Callable[..., Any]:
    """Wraps megatron-core's bias-dropout-add; biases do not occur (`add_bias_linear` is off in GLM)."""

    def chosen(training: bool, fused: bool) -> Callable[..., Any]:
        def normed_add(output_and_bias: tuple[Any, Any], residual: Any, dropout: float) -> Any:
            output, bias = output_and_bias
            return add(training, fused)((norm(output if bias is None else output + bias), None), residual, dropout)

        return normed_add

    return chosen
