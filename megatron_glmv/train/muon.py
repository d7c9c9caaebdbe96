"""Muon for matrices inside megatron-core's distributed optimizer, AdamW for everything else.

Muon (Jordan et al. 2024) as GLM-4.5 used it (arXiv 2508.06471, section 2.4: 5 Newton-Schulz steps, momentum 0.95,
update RMS 0.2) in the form of arXiv 2502.16982:

    M <- mu M + G,   U = G + mu M (Nesterov) or M,   W <- (1 - lr wd) W - lr 0.2 NewtonSchulz(U) / RMS

    data-parallel shards of U --all-to-all--> owner has its tensor-parallel shard whole
        --all-to-all over tensor ranks--> one rank has the matrix, orthogonalises it, and everything goes back

megatron-core has a Muon of its own (optimizer/muon.py). It is not used: it refuses the distributed optimizer (so every
data-parallel rank keeps the fp32 weights and the momentum of the whole model), takes gate and up as one matrix, takes
the vision encoder's q, k and v by the decoder's head counts, and needs the package emerging-optimizers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from megatron_glmv.train.orthogonal import exchange, orthogonalise, put, scaled, take
from megatron_glmv.train.ownership import Matrix, rounds_of


@dataclass(frozen=True)
class MuonSettings:
    momentum: float
    nesterov: bool
    steps: int
    rms: float
    measured: bool
    """Whether an update is scaled by the size it has or the size its shape gives it (train/orthogonal.py)."""
    dtype: torch.dtype
    """Of the products in Newton-Schulz."""


@dataclass(frozen=True)
class Layout:
    """What the update has to know about where weights are."""

    matrices: list[Matrix]
    shard_of: dict[torch.nn.Parameter, torch.Tensor]
    """This rank's piece of each matrix, flat, fp32: what the distributed optimizer updates."""
    data: Any
    """Group of the ranks that share the pieces."""
    tensor: Any
    """Group of the ranks that share a matrix (of expert tensor parallelism, for experts)."""


class MuonWithAdamW(torch.optim.Optimizer):
    """Takes the place of the AdamW inside a DistributedOptimizer, with the same parameter groups.

    A group with `muon` True has one state, `exp_avg` (the momentum), so that megatron-core finds, saves and reshards it
    as it does AdamW's. Options of groups come from the run's config and never from a checkpoint: only `step` is loaded.
    """

    def __init__(self, adamw: torch.optim.Optimizer, layout: Layout, settings: MuonSettings) -> None:
        super().__init__([torch.empty(0)], adamw.defaults)
        self.param_groups = adamw.param_groups  # shards of fp32 weights are views, which the constructor refuses
        self.adamw, self.layout, self.settings = adamw, layout, settings
        self.rounds = rounds_of(layout.matrices, layout.data.size(), layout.tensor.size())
        self.single_moment = frozenset(matrix.parameter for matrix in layout.matrices)
        """Weights of the model that have no second moment; checkpoint/sharded.py reads this."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Collective over `layout.data` and `layout.tensor`."""
        self.adamw.state = self.state
        self.adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self.adamw.step()
        group_of: dict[torch.Tensor, dict[str, Any]] = {}
        for group in self.param_groups:
            if group["muon"] and group["params"]:
                group["step"] = group.get("step", 0) + 1
                group_of |= dict.fromkeys(group["params"], group)
        for matrices in self.rounds:
            self._round(matrices, group_of)

    def _round(self, matrices: list[Matrix], group_of: dict[torch.Tensor, dict[str, Any]]) -> None:
        updates: dict[Matrix, torch.Tensor] = {}
        for matrix in matrices:
            shard = self.layout.shard_of.get(matrix.parameter)
            if shard is not None:
                updates[matrix] = self._momentum(shard)
        whole = self._gather(matrices, updates)
        self._orthogonalise(whole)
        for matrix, update in self._scatter(matrices, whole).items():
            shard = self.layout.shard_of[matrix.parameter]
            group = group_of[shard]
            shard.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _momentum(self, shard: torch.Tensor) -> torch.Tensor:
        """This rank's part of U, before orthogonalisation."""
        assert shard.grad is not None
        gradient = shard.grad.float()
        if not self.state[shard]:
            self.state[shard] = {"exp_avg": torch.zeros_like(shard)}
        average: torch.Tensor = self.state[shard]["exp_avg"]
        average.mul_(self.settings.momentum).add_(gradient)
        return gradient.add(average, alpha=self.settings.momentum) if self.settings.nesterov else average

    def _gather(self, matrices: list[Matrix], updates: dict[Matrix, torch.Tensor]) -> dict[Matrix, torch.Tensor]:
        """Matrices that this rank owns, whole over data-parallel ranks."""
        group, me = self.layout.data, self.layout.data.rank()
        owned = [matrix for matrix in matrices if matrix.owner == me]
        crossing = [matrix for matrix in matrices if len(matrix.pieces) > 1]
        arrived: list[torch.Tensor] = []
        if crossing:
            sent: list[list[torch.Tensor]] = [[] for _ in range(group.size())]
            sizes = [0] * group.size()
            for matrix in crossing:
                if matrix.owner == me:
                    for piece in matrix.pieces:
                        sizes[piece.holder] += (piece.end - piece.start) * (piece.holder != me)
                elif matrix in updates:
                    sent[matrix.owner].append(updates[matrix])
            arrived = exchange(sent, sizes, group, self._like())
        used = [0] * group.size()
        whole = {}
        for matrix in owned:
            parts = []
            for piece in matrix.pieces:
                if piece.holder == me:
                    parts.append(updates[matrix])
                else:
                    at, size = used[piece.holder], piece.end - piece.start
                    parts.append(arrived[piece.holder][at : at + size])
                    used[piece.holder] += size
            whole[matrix] = torch.cat(parts).view(matrix.parameter.shape)
        return whole

    def _scatter(self, matrices: list[Matrix], whole: dict[Matrix, torch.Tensor]) -> dict[Matrix, torch.Tensor]:
        """The way back: each holder's flat piece of the result."""
        group, me = self.layout.data, self.layout.data.rank()
        mine = {}
        sent: list[list[torch.Tensor]] = [[] for _ in range(group.size())]
        awaited: list[list[Matrix]] = [[] for _ in range(group.size())]
        for matrix in matrices:
            for piece in matrix.pieces:
                if matrix.owner == me:
                    part = whole[matrix].reshape(-1)[piece.start : piece.end]
                    if piece.holder == me:
                        mine[matrix] = part
                    else:
                        sent[piece.holder].append(part)
                elif piece.holder == me:
                    awaited[matrix.owner].append(matrix)
        if not any(len(matrix.pieces) > 1 for matrix in matrices):
            return mine
        lengths = [[_length(matrix, me) for matrix in expected] for expected in awaited]
        arrived = exchange(sent, [sum(each) for each in lengths], group, self._like())
        for expected, flat, each in zip(awaited, arrived, lengths, strict=True):
            mine |= dict(zip(expected, torch.split(flat, each), strict=True)) if expected else {}
        return mine

    def _orthogonalise(self, whole: dict[Matrix, torch.Tensor]) -> None:
        """In place, tensor-parallel shards of matrices to those of their scaled orthogonal factors.

        Tensor-parallel ranks own shards of the same matrices; each orthogonalises every one of their number.
        """
        units = [(matrix, rows) for matrix in whole for rows in matrix.parts]
        shards = [take(whole[matrix], rows).contiguous() for matrix, rows in units]
        if not units:
            return
        if self.layout.tensor.size() == 1:
            full = dict(enumerate(shards))
            self._by_shape(full)
        else:
            dims = [matrix.dim for matrix, _ in units]
            full = self._among_tensor_ranks(shards, dims)
            self._by_shape(full)
            full = self._back_to_tensor_ranks(full, shards, dims)
        for i, (matrix, rows) in enumerate(units):
            put(whole[matrix], rows, full[i])

    def _among_tensor_ranks(self, shards: list[torch.Tensor], dims: list[int | None]) -> dict[int, torch.Tensor]:
        """The matrices that are this rank's to orthogonalise, whole, by number. Nothing is sent of those that all
        ranks hold alike (dim None)."""
        group, size = self.layout.tensor, self.layout.tensor.size()
        full = {i: shards[i] for i in range(group.rank(), len(shards), size)}
        sent = [[shards[i] for i in range(r, len(shards), size) if dims[i] is not None] for r in range(size)]
        split = [(i, dim) for i in full if (dim := dims[i]) is not None]
        counts = [shards[i].numel() for i, _ in split]
        arrived = [torch.split(part, counts) for part in exchange(sent, [sum(counts)] * size, group, self._like())]
        for k, (i, dim) in enumerate(split):
            full[i] = torch.cat([part[k].view_as(shards[i]) for part in arrived], dim=dim)
        return full

    def _back_to_tensor_ranks(
        self, full: dict[int, torch.Tensor], shards: list[torch.Tensor], dims: list[int | None]
    ) -> dict[int, torch.Tensor]:
        """This rank's shards of all results, by number."""
        group, size = self.layout.tensor, self.layout.tensor.size()
        sent: list[list[torch.Tensor]] = [[] for _ in range(size)]
        for i, result in full.items():
            dim = dims[i]
            for r in range(size):
                sent[r].append(result if dim is None else result.chunk(size, dim=dim)[r].contiguous())
        numbers = [range(r, len(shards), size) for r in range(size)]
        counts = [[shards[i].numel() for i in each] for each in numbers]
        arrived = exchange(sent, [sum(each) for each in counts], group, self._like())
        return {
            i: part.view_as(shards[i])
            for each, flat, count in zip(numbers, arrived, counts, strict=True)
            for i, part in zip(each, torch.split(flat, count), strict=True)
        }

    def _by_shape(self, full: dict[int, torch.Tensor]) -> None:
        """Matrices of one shape (all experts of a layer, all layers) go through Newton-Schulz together."""
        alike: dict[torch.Size, list[int]] = defaultdict(list)
        for i, matrix in full.items():
            alike[matrix.shape].append(i)
        for members in alike.values():
            stacked = torch.stack([full[i] for i in members])
            made = orthogonalise(stacked, self.settings.steps, self.settings.dtype)
            made = scaled(made, self.settings.rms, self.settings.measured)
            for i, matrix in zip(members, made.unbind(), strict=True):
                full[i] = matrix

    def _like(self) -> torch.Tensor:
        """Something of the device and type that is sent; a rank may hold no piece of any matrix."""
        parameter = self.layout.matrices[0].parameter
        return torch.empty(0, dtype=torch.float32, device=parameter.device)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes tensors and `step` (class docstring)."""
        options = [{k: v for k, v in group.items() if k not in ("params", "step")} for group in self.param_groups]
        state = {key: dict(value) for key, value in state_dict["state"].items()}
        for group, option in zip(state_dict["param_groups"], options, strict=True):
            for number in group["params"] if option["muon"] else ():
                state.get(number, {}).pop("exp_avg_sq", None)
        super().load_state_dict({"state": state, "param_groups": state_dict["param_groups"]})
        for group, option in zip(self.param_groups, options, strict=True):
            group.update(option)


def _length(matrix: Matrix, rank: int) -> int:
    piece = matrix.piece_of(rank)
    return 0 if piece is None else piece.end - piece.start
