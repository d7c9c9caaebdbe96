"""Samples side by side in one pack.

Shapes: T tokens of the pack, L tokens of a sample, N patches, V values of a patch, G media.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from megatron_glmv.data.packing import aligned
from megatron_glmv.data.sample import SampleLayout
from megatron_glmv.data.types import PackedBatch

GREY = 128
"""Pixel value of media that could not be decoded."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample, ready to be packed."""

    key: str
    layout: SampleLayout
    patches: tuple[torch.Tensor, ...] = ()
    """uint8 [n, V] of each medium, in order of appearance."""
    decoders: tuple[str, ...] = ()
    """Decoder of each medium."""
    failure: str = ""
    """Why this sample is a hole; empty where it is sound."""

    def failed(self, reason: str, patch_values: int) -> Sample:
        """The hole it leaves: same tokens, places and grids, so that nothing behind it shifts; no loss, grey pixels."""
        return Sample(
            key=self.key,
            layout=replace(
                self.layout,
                labels=np.zeros_like(self.layout.labels),
                loss_weights=np.zeros_like(self.layout.loss_weights),
            ),
            patches=tuple(
                torch.full((p.grid.patches, patch_values), GREY, dtype=torch.uint8) for p in self.layout.plans
            ),
            decoders=("none",) * len(self.layout.plans),
            failure=reason,
        )


def hole(key: str, length: int, pad: int, reason: str) -> Sample:
    """Stands for a sample whose very conversation cannot be read: `length` tokens without loss or media."""
    ids = np.full(length, pad, dtype=np.int64)
    positions = np.broadcast_to(np.arange(length), (3, length))
    nothing = np.zeros(0, dtype=np.int64)
    return Sample(key, SampleLayout(ids, ids * 0, np.zeros(length, np.float32), positions, nothing, ()), failure=reason)


def collate(samples: Sequence[Sample], budget: int, pad: int, patch_values: int) -> PackedBatch:
    """Pack `samples` in their order into `budget` tokens, each from a multiple of packing.ALIGN.

    A sample's segment ends where the next begins; what is left of the pack is a segment of its own. Raises ValueError
    where the samples do not fit, or a medium's patches are not as many as its grid says.
    """
    ends = np.cumsum([aligned(len(sample.layout)) for sample in samples]).tolist()
    if not samples or ends[-1] > budget:
        raise ValueError(f"{len(samples)} samples of {ends[-1] if ends else 0} tokens in a pack of {budget}")
    starts = [0, *ends[:-1]]
    input_ids = np.full(budget, pad, dtype=np.int64)
    labels = np.zeros(budget, dtype=np.int64)
    weights = np.zeros(budget, dtype=np.float32)
    positions = np.zeros((3, budget), dtype=np.int64)
    padding = np.ones(budget, dtype=np.bool_)
    visual = [np.zeros(0, dtype=np.int64)]
    for start, sample in zip(starts, samples, strict=True):
        layout = sample.layout
        span = slice(start, start + len(layout))
        input_ids[span] = layout.input_ids
        labels[span] = layout.labels
        weights[span] = layout.loss_weights
        positions[:, span] = layout.position_ids
        padding[span] = False
        visual.append(layout.visual_positions + start)
    grids = [(p.grid.t, p.grid.h, p.grid.w) for sample in samples for p in sample.layout.plans]
    boundaries = [*starts, ends[-1]] + ([budget] if ends[-1] < budget else [])
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        loss_weights=torch.from_numpy(weights),
        position_ids=torch.from_numpy(positions),
        cu_seqlens=torch.tensor(boundaries, dtype=torch.int32),
        padding=torch.from_numpy(padding),
        pixel_values=_pixels(samples, patch_values),
        grids=torch.tensor(grids, dtype=torch.int64).reshape(-1, 3),
        visual_positions=torch.from_numpy(np.concatenate(visual)),
        sample_ids=tuple(sample.key for sample in samples),
        failed=tuple(sample.key for sample in samples if sample.failure),
        decoders=tuple(name for sample in samples for name in sample.decoders),
    )


def _pixels(samples: Sequence[Sample], patch_values: int) -> torch.Tensor:
    """[N, V] of all media in order."""
    found: list[torch.Tensor] = []
    for sample in samples:
        for plan, patches in zip(sample.layout.plans, sample.patches, strict=True):
            if patches.shape != (plan.grid.patches, patch_values):
                raise ValueError(f"{sample.key}: {plan.member} has patches {tuple(patches.shape)} for grid {plan.grid}")
            found.append(patches)
    return torch.cat(found) if found else torch.zeros(0, patch_values, dtype=torch.uint8)
