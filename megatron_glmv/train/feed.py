"""Batches for every rank of a model replica, read and decoded once.

The first rank of a replica (tensor rank 0 of the first stage) owns the loader and sends what it made to the others:
tokens and geometry to all, pixels only to the first stage, which has the encoder. Everyone gets whole packs; which
tokens of them a context-parallel rank computes is decided where they are used (train/step.py).
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Protocol

import torch
import torch.distributed as dist

from megatron_glmv.data.types import Json, PackedBatch
from megatron_glmv.parallel.collectives import broadcast_tensors
from megatron_glmv.parallel.groups import Groups

TEXT_FIELDS = (
    "input_ids",
    "labels",
    "loss_weights",
    "position_ids",
    "cu_seqlens",
    "padding",
    "grids",
    "visual_positions",
)


class Loader(Protocol):
    """What data/loader.py offers: the packs of one data-parallel rank."""

    def next_step(self) -> list[PackedBatch]: ...
    def state_dict(self) -> Json: ...
    def load_state_dict(self, state: Json) -> None: ...
    def close(self) -> None: ...


class Feed:
    """Hands each rank the micro-batches of its replica's next step. Collective over the replica."""

    def __init__(self, loader: Loader | None, groups: Groups, device: torch.device, micro_batches: int) -> None:
        self.loader, self.groups, self.device = loader, groups, device
        self.micro_batches = micro_batches
        self.source = dist.get_process_group_ranks(groups.model)[0]
        self.owns_loader = dist.get_rank() == self.source

    def next_step(self) -> list[PackedBatch]:
        made = self.loader.next_step() if self.loader is not None else [None] * self.micro_batches
        return [self._share(batch) for batch in made]

    def _share(self, batch: PackedBatch | None) -> PackedBatch:
        text = None
        if batch is not None:
            keys = json.dumps(batch.sample_ids).encode()
            text = {name: getattr(batch, name) for name in TEXT_FIELDS}
            text["sample_ids"] = torch.frombuffer(bytearray(keys), dtype=torch.uint8)
        text = broadcast_tensors(text, self.source, self.groups.model, self.device)
        sample_ids = tuple(json.loads(bytes(text.pop("sample_ids").tolist())))
        pixels: dict[str, Any] | None = {"pixel_values": batch.pixel_values} if batch is not None else None
        if self.groups.first_stage:
            pixels = broadcast_tensors(pixels, self.source, self.groups.tp_cp, self.device)
        else:
            pixels = {"pixel_values": torch.empty(0, 0, dtype=torch.uint8)}
        tensors: dict[str, Any] = {**text, **pixels}
        return PackedBatch(**tensors, sample_ids=sample_ids) if batch is None else dataclasses.replace(batch, **tensors)

    def state_dict(self) -> Json:
        """The loader's position, on every rank of the replica that owns data-parallel index 0 and wherever a loader
        is."""
        return self.loader.state_dict() if self.loader is not None else {}

    def close(self) -> None:
        if self.loader is not None:
            self.loader.close()
