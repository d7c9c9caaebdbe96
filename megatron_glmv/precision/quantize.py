"""Numbers of eight bits with a scale: rounding to FP8 and back, for a whole tensor or block by block.

E4M3 has 4 exponent and 3 mantissa bits (largest 448), E5M2 5 and 2 (largest 57344): arXiv 2209.05433. A value is stored
as round(value x scale), and stands for stored / scale. Shapes: M rows, K columns; blocks of P x Q.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}


class Quantized(NamedTuple):
    """A matrix in FP8."""

    values: torch.Tensor
    """[M, K] float8."""
    scale: torch.Tensor
    """fp32: [] of the whole tensor, or [ceil(M / P), ceil(K / Q)] of its blocks."""
    block: tuple[int, int] | None = None
    """(P, Q); None: one scale."""

    def dequantize(self) -> torch.Tensor:
        """[M, K] fp32: what the stored values stand for."""
        if self.block is None:
            return self.values.float() * (1.0 / self.scale)
        return self.values.float() * _spread(1.0 / self.scale, self.block, self.values.shape)


def largest(tensor: torch.Tensor) -> torch.Tensor:
    """[] fp32: the largest magnitude; 0 of an empty tensor (an expert without tokens)."""
    return tensor.detach().abs().amax().float() if tensor.numel() else tensor.new_zeros((), dtype=torch.float32)


def scale_for(amax: torch.Tensor, dtype: torch.dtype, power_of_2: bool = False) -> torch.Tensor:
    """The scale that brings `amax` to the largest number of the format; 1 where all is zero. power_of_2: rounded down,
    so that scaling changes the exponent alone."""
    scale = torch.where(amax > 0, LARGEST[dtype] / amax.clamp_min(1e-30), torch.ones_like(amax))
    return torch.exp2(torch.floor(torch.log2(scale))) if power_of_2 else scale


def quantize(tensor: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor) -> Quantized:
    """[M, K] -> FP8 with one given scale. What is beyond the format becomes its largest number."""
    return Quantized(_cast(tensor.float() * scale, dtype), scale)


def quantize_blocks(
    tensor: torch.Tensor, dtype: torch.dtype, block: tuple[int, int], power_of_2: bool = True
) -> Quantized:
    """[M, K] -> FP8 with one scale for each block of P x Q, from the block's own largest magnitude. Blocks at the edge
    may be smaller."""
    (m, k), (p, q) = tensor.shape, block
    padded = F.pad(tensor.detach().float().abs(), (0, -k % q, 0, -m % p))
    amax = padded.view(padded.shape[0] // p, p, padded.shape[1] // q, q).amax((1, 3)) if tensor.numel() else padded
    scale = scale_for(amax, dtype, power_of_2)
    return Quantized(_cast(tensor.float() * _spread(scale, block, tensor.shape), dtype), scale, block)


def _cast(scaled: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # Clamped first: torch before 2.13 makes NaN of what is above 464 in E4M3, and every torch infinity in E5M2.
    return scaled.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


def _spread(scale: torch.Tensor, block: tuple[int, int], shape: torch.Size) -> torch.Tensor:
    """A scale for each element: [ceil(M / P), ceil(K / Q)] -> [M, K]."""
    m, k = shape
    return scale.repeat_interleave(block[0], 0)[:m].repeat_interleave(block[1], 1)[:, :k]
