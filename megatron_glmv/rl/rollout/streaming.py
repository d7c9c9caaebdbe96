"""The trained weights, wherever they are sharded, whole on the first rank and under the names of a checkpoint on disk,
a bucket at a time.

Shards are found by the names, shapes and offsets that checkpoints have, names come from the one table of conversion
(checkpoint/hf/mapping.py), and no rank ever holds more than a bucket and the tensor it is cut from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_glmv.checkpoint.errors import MismatchError
from megatron_glmv.checkpoint.hf.mapping import Entry, NameMapping
from megatron_glmv.model.build import sharding_metadata
from megatron_glmv.parallel.groups import Groups
from megatron_glmv.rl.rollout.weights import Piece, main_shards, piece_of

Bucket = list[tuple[str, torch.Tensor]]


class TrainedTensors:
    """Gathers the weights of `chunks`, this rank's part of the model. Every call is collective."""

    def __init__(self, chunks: list[Any], mapping: NameMapping, groups: Groups, device: torch.device) -> None:
        self.chunks, self.mapping, self.device = chunks, mapping, device
        self._metadata = sharding_metadata(groups)
        mine = [piece_of(shard) for shard in main_shards(chunks, self._metadata)]
        pieces: list[list[Piece]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(pieces, mine)
        self._owners: dict[str, dict[int, list[Piece]]] = {}
        for rank, held in enumerate(pieces):
            for piece in held:
                self._owners.setdefault(piece.key, {}).setdefault(rank, []).append(piece)
        unknown = sorted(set(self._owners) ^ set(mapping.ours))
        if unknown:
            raise MismatchError(f"the trained model and the table of names differ in {', '.join(unknown[:8])}")
        self._theirs: dict[str, list[str]] = {}
        for name, entry in mapping.sources.items():
            self._theirs.setdefault(entry.ours.name, []).append(name)

    def buckets(self, most: int) -> Iterator[Bucket]:
        """(name, tensor) on the first rank, at most `most` bytes a time unless a single tensor is larger; empty lists
        on the others, who have to iterate as well."""
        mine: dict[str, list[ShardedTensor]] = {}
        for shard in main_shards(self.chunks, self._metadata):
            mine.setdefault(shard.key, []).append(shard)
        bucket: Bucket = []
        size = 0
        for entry in self.mapping.entries:
            whole = self._whole(entry, mine.get(entry.ours.name, []))
            for name in self._theirs[entry.ours.name]:
                shaped = self.mapping.theirs[name]
                added = shaped.numel * (4 if shaped.exact else _itemsize(self._owners[entry.ours.name]))
                if size and size + added > most:  # the same on every rank
                    yield bucket
                    bucket, size = [], 0
                if whole is not None:
                    bucket.append((name, self.mapping.tensor_of_theirs(name, whole)))
                size += added
        if size:
            yield bucket

    @torch.no_grad()
    def _whole(self, entry: Entry, mine: list[ShardedTensor]) -> torch.Tensor | None:
        rank, owners = dist.get_rank(), self._owners[entry.ours.name]
        if rank != 0:
            if rank in owners:
                flat = torch.cat([shard.data.detach().reshape(-1) for shard in mine])
                dist.send(flat.contiguous(), 0)
            return None
        dtype = getattr(torch, next(iter(owners.values()))[0].dtype.removeprefix("torch."))
        whole = torch.empty(entry.ours.shape, dtype=dtype, device=self.device)
        for owner, pieces in owners.items():
            if owner == 0:
                parts = [shard.data.detach().reshape(-1) for shard in mine]
            else:
                flat = torch.empty(sum(piece.numel for piece in pieces), dtype=dtype, device=self.device)
                dist.recv(flat, owner)
                parts = list(torch.split(flat, [piece.numel for piece in pieces]))
            for piece, part in zip(pieces, parts, strict=True):
                box = tuple(slice(o, o + n) for o, n in zip(piece.offset, piece.shape, strict=True))
                whole[box] = part.view(piece.shape)
        return whole


def _itemsize(owners: dict[int, list[Piece]]) -> int:
    return int(getattr(torch, next(iter(owners.values()))[0].dtype.removeprefix("torch.")).itemsize)
