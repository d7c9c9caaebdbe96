"""Newton-Schulz orthogonalisation, and which rows of a stored weight are one matrix.

Shapes: n matrices of A x B at once; R rows and C columns of a weight as a rank stores it, G query groups of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of X <- aX + b(XX')X + c(XX')^2 X. They are chosen for speed, not for the limit 1: after five steps singular
values above 1e-3 of the largest lie in 0.68 to 1.13 (Jordan et al. 2024, "Muon")."""


def orthogonalise(matrices: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """[n, A, B] -> [n, A, B] fp32: UV' of each matrix USV', about. Zero stays zero (an expert without tokens)."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = (x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = (x if wide else x.mT).float()
    return result


def scaled(orthogonal: torch.Tensor, rms: float, measured: bool) -> torch.Tensor:
    """[n, A, B] -> [n, A, B] with a root mean square of `rms` (arXiv 2502.16982, section 2.2).

    By shape: an orthogonal matrix has min(A, B) singular values of 1, a mean square of min / AB = 1 / max, and is
    multiplied by rms sqrt(max(A, B)). What Newton-Schulz gives is smaller: singular values of 0.68 to 1.13, and of less
    where the gradient has fewer directions than the matrix. Measured: divided by the root mean square that it has.
    """
    if not measured:
        return orthogonal * (rms * math.sqrt(max(orthogonal.shape[1:])))
    has = orthogonal.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return orthogonal * (rms / has.clamp_min(torch.finfo(torch.float32).tiny))


def matrices_of(name: str, rows: int, query_heads: int, head_dim: int) -> list[torch.Tensor | None]:
    """Rows of each matrix that a weight of R rows, stored by megatron-core under `name`, is made of; None: all.

    What the released model has as separate matrices is orthogonalised separately. q, k and v are stored together, group
    by group: [G x (query_heads + 2) x head_dim, C], gate and up behind one another on each tensor-parallel rank.
    """
    if "linear_qkv." in name:
        heads = torch.arange(rows).view(-1, query_heads + 2, head_dim)
        return [heads[:, :query_heads].flatten(), heads[:, -2].flatten(), heads[:, -1].flatten()]
    if "linear_fc1." in name:
        return list(torch.arange(rows).chunk(2))
    return [None]


def take(weight: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return weight if rows is None else weight.index_select(0, rows.to(weight.device))


def put(weight: torch.Tensor, rows: torch.Tensor | None, part: torch.Tensor) -> None:
    if rows is None:
        weight.copy_(part)
    else:
        weight.index_copy_(0, rows.to(weight.device), part)


def exchange(
    to_rank: list[list[torch.Tensor]], from_rank: list[int], group: Any, like: torch.Tensor
) -> list[torch.Tensor]:
    """Sends each rank of `group` its tensors, laid flat behind one another, and returns the flat one that each sent us.
    `from_rank`: their numbers of elements. Collective over `group`."""
    flat = [torch.cat([t.reshape(-1) for t in ts]) if ts else like.new_empty(0) for ts in to_rank]
    received = like.new_empty(sum(from_rank))
    torch.distributed.all_to_all_single(received, torch.cat(flat), from_rank, [len(part) for part in flat], group=group)
    return list(torch.split(received, from_rank))
