"""The trained weights, wherever they are sharded, whole in the model of each rank's rollout engine.

Shards are found by the names, shapes and offsets that checkpoints have (`sharded_state_dict`), so that every layout a
checkpoint can be saved on can also roll out. What each rank is the first to hold is sent to all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica

from megatron_glmv.checkpoint.sharded import model_state
from megatron_glmv.config.schema import Config, ParallelConfig
from megatron_glmv.model.build import build_model, sharding_metadata
from megatron_glmv.model.initialise import shards
from megatron_glmv.parallel.groups import Groups
from megatron_glmv.parallel.topology import Topology

BUCKET_BYTES = 1 << 25
"""Sent in one message."""


class WeightsDifferError(RuntimeError):
    """The engine's weights are not those that are trained."""

    exit_code = 76


@dataclass(frozen=True)
class Piece:
    """A box of a named tensor, as one rank holds it."""

    key: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    """With the axes that a stack of experts or layers has in front."""
    dtype: str

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


def piece_of(shard: ShardedTensor) -> Piece:
    shape = (1,) * shard.prepend_axis_num + tuple(shard.data.shape)
    return Piece(shard.key, tuple(shard.global_offset), shape, str(shard.data.dtype))


def _sharded(chunks: list[Any], metadata: dict[str, Any]) -> Iterator[ShardedTensor]:
    for chunk in chunks:
        yield from shards(model_state(chunk, metadata))


def main_shards(chunks: list[Any], metadata: dict[str, Any]) -> list[ShardedTensor]:
    """What this rank is the first to hold."""
    return [shard for shard in _sharded(chunks, metadata) if is_main_replica(shard.replica_id)]


def whole_model(config: Config, groups: Groups, *, backend: str, device: torch.device) -> Any:
    """A model that is not sharded, in every rank of any layout, to generate with."""
    alone = replace(groups, mcore=groups.solo, tensor_only=groups.solo, topology=Topology(), _replica=groups.solo.tp)
    (model,) = build_model(replace(config, parallel=ParallelConfig()), alone, backend=backend, device=device)
    model.requires_grad_(False)
    return model.module if hasattr(model, "module") else model


class WeightSync:
    """Copies the weights of `chunks` (this rank's part of the trained model) into `model` (whole). Collective."""

    def __init__(self, chunks: list[Any], model: Any, groups: Groups, device: torch.device) -> None:
        self.chunks, self.device = chunks, device
        self._metadata = sharding_metadata(groups)
        alone = {**self._metadata, "dp_cp_group": groups.solo.dp_cp}
        self._whole: dict[str, list[ShardedTensor]] = {}
        for shard in _sharded([model], alone):
            self._whole.setdefault(shard.key, []).append(shard)
        mine = [piece_of(shard) for shard in self._mine()]
        self._pieces: list[list[Piece]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(self._pieces, mine)
        sent = sum(piece.numel for pieces in self._pieces for piece in pieces)
        held = sum(shard.data.numel() for found in self._whole.values() for shard in found)
        if sent != held:
            raise WeightsDifferError(f"the trained model has {sent} weights, the engine's {held}")

    def _mine(self) -> list[ShardedTensor]:
        """What this rank is the first to hold. Made anew each time: a checkpoint that was loaded, or an optimizer, may
        have put other tensors there."""
        return main_shards(self.chunks, self._metadata)

    @torch.no_grad()
    def __call__(self) -> None:
        rank = dist.get_rank()
        mine = [shard.data for shard in self._mine()]
        for source, pieces in enumerate(self._pieces):
            for bucket in _buckets(pieces):
                dtype = getattr(torch, pieces[bucket[0]].dtype.removeprefix("torch."))
                if source == rank:
                    flat = torch.cat([mine[i].detach().reshape(-1) for i in bucket])
                else:
                    flat = torch.empty(sum(pieces[i].numel for i in bucket), dtype=dtype, device=self.device)
                if len(self._pieces) > 1:
                    dist.broadcast(flat, source)
                parts = torch.split(flat, [pieces[i].numel for i in bucket])
                for i, part in zip(bucket, parts, strict=True):
                    target = self._target(pieces[i])
                    target.copy_(part.view(target.shape))

    def verify(self) -> None:
        """Raises WeightsDifferError on every rank where a bit differs between the trained weights and any engine's: a
        reload that reports success proves nothing."""
        wrong = [
            shard.key
            for shard in self._mine()
            if not torch.equal(self._target(piece_of(shard)).reshape(-1), shard.data.reshape(-1))
        ]
        found: list[tuple[list[str], str]] = [([], "")] * dist.get_world_size()
        dist.all_gather_object(found, (wrong, self._digest()))
        keys = sorted({key for names, _ in found for key in names})
        if keys:
            raise WeightsDifferError(
                f"{len(keys)} tensors of the engine are not the trained ones: {', '.join(keys[:8])}"
            )
        if len({digest for _, digest in found}) > 1:
            raise WeightsDifferError("ranks roll out with different weights")

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for key in sorted(self._whole):
            for shard in self._whole[key]:
                digest.update(shard.data.detach().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
        return digest.hexdigest()

    def _target(self, piece: Piece) -> torch.Tensor:
        """The box of the whole model that a piece belongs to, as a view."""
        for shard in self._whole[piece.key]:
            whole = piece_of(shard)
            start = [o - w for o, w in zip(piece.offset, whole.offset, strict=True)]
            inside = zip(start, piece.shape, whole.shape, strict=True)
            if all(s >= 0 and s + n <= w for s, n, w in inside):
                prepended = shard.prepend_axis_num
                box = tuple(slice(s, s + n) for s, n in zip(start, piece.shape, strict=True))[prepended:]
                found: torch.Tensor = shard.data.detach()[box]
                return found
        raise WeightsDifferError(f"the engine has no place for {piece.key} at {piece.offset}")


def _buckets(pieces: list[Piece]) -> Iterator[list[int]]:
    """Indices of pieces of one dtype that are sent together."""
    bucket: list[int] = []
    elements = 0
    for i, piece in enumerate(pieces):
        full = elements + piece.numel > BUCKET_BYTES // 4
        if bucket and (full or piece.dtype != pieces[bucket[0]].dtype):
            yield bucket
            bucket, elements = [], 0
        bucket.append(i)
        elements += piece.numel
    if bucket:
        yield bucket
