"""Who holds which piece of a matrix, and who orthogonalises it.

megatron-core's distributed optimizer cuts each gradient bucket into one contiguous part per data-parallel rank, without
regard to where a parameter begins. A matrix is orthogonalised whole, by its owner: the rank with the largest piece of
it, so that most of it stays where it is. Pieces, owners and rounds follow from the buffers' layout alone: every rank
works them out for all, and no sizes are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

ROUND = 1 << 27
"""Elements that one rank orthogonalises at once (512 MiB in fp32, and three times that in products)."""


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `end` of a flat matrix, held by data-parallel rank `holder`."""

    holder: int
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight of this rank's model."""

    parameter: torch.nn.Parameter
    pieces: tuple[Piece, ...]
    parts: tuple[torch.Tensor | None, ...]
    """Rows of each matrix in it (train/orthogonal.py)."""
    dim: int | None
    """Dimension along which tensor-parallel ranks share it; None: all hold the same."""

    @property
    def owner(self) -> int:
        return max(self.pieces, key=lambda piece: (piece.end - piece.start, -piece.holder)).holder

    def piece_of(self, rank: int) -> Piece | None:
        return next((piece for piece in self.pieces if piece.holder == rank), None)


def pieces_of(start: int, end: int, bucket_start: int, share: int) -> tuple[Piece, ...]:
    """Pieces of a parameter at `start` to `end` of a buffer, in a bucket cut into shares."""
    first, last = (start - bucket_start) // share, (end - 1 - bucket_start) // share
    return tuple(
        Piece(r, max(0, bucket_start + r * share - start), min(end, bucket_start + (r + 1) * share) - start)
        for r in range(first, last + 1)
    )


def matrices_in(
    buffers: Iterable[Any],
    ranks: int,
    parts: Callable[[torch.nn.Parameter], tuple[torch.Tensor | None, ...] | None],
    dim: Callable[[torch.nn.Parameter], int | None],
) -> list[Matrix]:
    """The matrices of gradient buffers that `ranks` data-parallel ranks share, in the buffers' order. `parts` gives
    None for a parameter that is not to be orthogonalised."""
    found = []
    for buffer in buffers:
        for parameter, (start, end, number) in buffer.param_index_map.items():
            rows = parts(parameter)
            if rows is not None:
                bucket = buffer.buckets[number]
                pieces = pieces_of(start, end, bucket.offset, bucket.grad_data.numel() // ranks)
                found.append(Matrix(parameter, pieces, rows, dim(parameter)))
    return found


def rounds_of(matrices: list[Matrix], ranks: int, tensor: int, limit: int = ROUND) -> list[list[Matrix]]:
    """Cuts the work so that no owner has more than `limit` elements in a round (or one matrix); each round has work
    for every owner that still has some. `tensor`: tensor-parallel ranks, which share an owner's work."""
    rounds: list[list[Matrix]] = []
    number, filled = [0] * ranks, [0] * ranks
    for matrix in matrices:
        owner = matrix.owner
        size = matrix.parameter.numel() if matrix.dim is not None else -(-matrix.parameter.numel() // tensor)
        if filled[owner] and filled[owner] + size > limit:
            number[owner], filled[owner] = number[owner] + 1, 0
        filled[owner] += size
        while len(rounds) <= number[owner]:
            rounds.append([])
        rounds[number[owner]].append(matrix)
    return rounds
