"""A matrix product whose operands are rounded to FP8: fp32 products of rounded values, as FP8 units accumulate them.

Shapes: S sequence, B batch, K inputs and N outputs of a layer.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_glmv.precision.quantize import Quantized
from megatron_glmv.precision.recipes import Recipe


class Fp8Product(torch.autograd.Function):
    """y = x w^T with x, w and the gradient of y in FP8; gradients pass the rounding as if it were not there."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, recipe: Recipe, training: bool, recomputed: bool) -> Any:
        """x [S, B, K], w [N, K] -> [S, B, N] in x's dtype."""
        found = recipe.forward(x.reshape(-1, x.shape[-1]), w, training=training, recomputed=recomputed)
        ctx.recipe, ctx.dtypes, ctx.blocks = recipe, (x.dtype, w.dtype), (found.x_wgrad.block, found.w_dgrad.block)
        ctx.save_for_backward(*found.x_wgrad[:2], *found.w_dgrad[:2])
        y = found.x.dequantize() @ found.w.dequantize().t()
        return y.to(x.dtype).view(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """[S, B, N] -> gradients of x [S, B, K] and w [N, K] in their dtypes."""
        (g,) = gradients
        saved = ctx.saved_tensors
        x = Quantized(saved[0], saved[1], ctx.blocks[0])
        w = Quantized(saved[2], saved[3], ctx.blocks[1])
        for_x, for_w = ctx.recipe.gradient(g.reshape(-1, g.shape[-1]))
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = (for_x.dequantize() @ w.dequantize()).to(ctx.dtypes[0]).view(*g.shape[:-1], w.values.shape[1])
        if ctx.needs_input_grad[1]:
            dw = (for_w.dequantize().t() @ x.dequantize()).to(ctx.dtypes[1])
        return dx, dw, None, None, None
