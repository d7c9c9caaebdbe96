"""How the scales of an FP8 matrix product are found: from the tensor, from its blocks, or from its past.

The product is y = x w^T (x [T, K], w [N, K], gradient g [T, N]); backward needs dx = g w and dw = g^T x. A recipe gives
each operand in the form its product multiplies. Formats and block shapes are those of Transformer Engine 2.11
(common/recipe: Float8CurrentScaling, Float8BlockScaling, DelayedScaling) as precision/fp8.py asks for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import NamedTuple

import torch

from megatron_glmv.precision.quantize import (
    E4M3,
    E5M2,
    Quantized,
    largest,
    quantize,
    quantize_blocks,
    scale_for,
)

HISTORY = 1024
"""Calls whose largest magnitudes delayed scaling remembers: Transformer Engine's default."""
BLOCK = 128
"""Side of a block: arXiv 2412.19437, section 3.3."""


class Operands(NamedTuple):
    """Of the forward product, and what the backward products need of the same tensors."""

    x: Quantized
    w: Quantized
    x_wgrad: Quantized
    """x for dw = g^T x."""
    w_dgrad: Quantized
    """w for dx = g w."""


class Recipe(ABC):
    """The scales of one linear layer. A layer has one of its own: a recipe may remember."""

    @abstractmethod
    def forward(self, x: torch.Tensor, w: torch.Tensor, *, training: bool, recomputed: bool) -> Operands:
        """x [T, K], w [N, K]. `recomputed`: nothing is saved of this pass, the same one will come again."""

    @abstractmethod
    def gradient(self, g: torch.Tensor) -> tuple[Quantized, Quantized]:
        """g [T, N] for dx = g w, and for dw = g^T x."""


class Tensorwise(Recipe):
    """One scale a tensor, from the tensor itself; gradients in E5M2, whose range is wider."""

    def forward(self, x: torch.Tensor, w: torch.Tensor, *, training: bool, recomputed: bool) -> Operands:
        qx, qw = (quantize(t, E4M3, scale_for(largest(t), E4M3)) for t in (x, w))
        return Operands(qx, qw, qx, qw)

    def gradient(self, g: torch.Tensor) -> tuple[Quantized, Quantized]:
        q = quantize(g, E5M2, scale_for(largest(g), E5M2))
        return q, q


class Blockwise(Recipe):
    """Scales of 1 x 128 (x and g, along the summed dimension of each product) and 128 x 128 (w), powers of two, all in
    E4M3: blocks so small need no more range (arXiv 2412.19437, section 3.3)."""

    def forward(self, x: torch.Tensor, w: torch.Tensor, *, training: bool, recomputed: bool) -> Operands:
        qw = quantize_blocks(w, E4M3, (BLOCK, BLOCK))
        return Operands(quantize_blocks(x, E4M3, (1, BLOCK)), qw, quantize_blocks(x, E4M3, (BLOCK, 1)), qw)

    def gradient(self, g: torch.Tensor) -> tuple[Quantized, Quantized]:
        return quantize_blocks(g, E4M3, (1, BLOCK)), quantize_blocks(g, E4M3, (BLOCK, 1))


class Past:
    """The largest magnitudes of one tensor in earlier calls, and the scale that follows from them."""

    def __init__(self, dtype: torch.dtype, length: int = HISTORY) -> None:
        self.dtype, self.length = dtype, length
        self.count = 0
        """Calls that were remembered, forgotten ones included."""
        self._seen: torch.Tensor | None = None  # [length], a ring; 0 where nothing was seen yet

    def scale(self, tensor: torch.Tensor) -> torch.Tensor:
        """From the past alone; of the very first call from the tensor itself. (Transformer Engine starts with scale 1:
        small gradients then vanish in the first step, and, as the past is not saved, in the first after a resume.)"""
        return scale_for(largest(tensor) if self._seen is None else self._seen.amax(), self.dtype)

    def add(self, tensor: torch.Tensor) -> None:
        if tensor.numel():
            if self._seen is None:
                self._seen = tensor.new_zeros(self.length, dtype=torch.float32)
            self._seen[self.count % self.length] = largest(tensor)
            self.count += 1


class Delayed(Recipe):
    """One scale a tensor, from its largest magnitude in the last calls: no pass over the tensor before it is rounded.

    What has grown beyond its past is cut off. Each rank remembers its own tensors; Transformer Engine takes the largest
    over the tensor, context and data parallel ranks.
    """

    def __init__(self, length: int = HISTORY) -> None:
        self.x, self.w, self.g = Past(E4M3, length), Past(E4M3, length), Past(E5M2, length)
        self._waiting: deque[tuple[torch.Tensor, torch.Tensor]] = deque()

    def forward(self, x: torch.Tensor, w: torch.Tensor, *, training: bool, recomputed: bool) -> Operands:
        """A recomputed pass rounds as the first one did, in the order of the micro-batches, and is remembered once."""
        if training and not recomputed and self._waiting:
            scales = self._waiting.popleft()
        else:
            scales = self.x.scale(x), self.w.scale(w)
            if training:
                self.x.add(x)
                self.w.add(w)
                if recomputed:
                    self._waiting.append(scales)
        qx, qw = quantize(x, E4M3, scales[0]), quantize(w, E4M3, scales[1])
        return Operands(qx, qw, qx, qw)

    def gradient(self, g: torch.Tensor) -> tuple[Quantized, Quantized]:
        q = quantize(g, E5M2, self.g.scale(g))
        self.g.add(g)
        return q, q


RECIPES: dict[str, type[Recipe]] = {"delayed": Delayed, "tensorwise": Tensorwise, "blockwise": Blockwise}
"""By the names of `precision.fp8_recipe`."""
