"""Encoded media: each image or video goes through the vision encoder once, however many questions ask about it.

Shapes: N patches, V values of a patch, M visual tokens of a medium, H hidden.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.patches import normalise
from megatron_glmv.inference.media import MediaFile, MediaFiles
from megatron_glmv.model.encoder_dp import encode

ENCODE_PATCHES = 1 << 14
"""Patches encoded in one call: with GLM-4.5V's encoder about 2 GB of activations."""
KEPT_BYTES = 1 << 29
"""Features that are kept; the least recently used go first."""

Encoded = torch.Tensor | SampleError


class Features:
    """Features [M, H] by medium, on the model's device. What could not be decoded is remembered as its error."""

    def __init__(self, encoder: Any, files: MediaFiles, device: torch.device, keep: int = KEPT_BYTES) -> None:
        self.encoder, self.files, self.device, self.keep = encoder, files, device, keep
        self._known: OrderedDict[str, Encoded] = OrderedDict()
        self._bytes = 0

    @torch.no_grad()
    def of(self, media: Sequence[MediaFile]) -> dict[str, Encoded]:
        """By key; those not known yet are decoded together and encoded together."""
        made: dict[str, Encoded] = {}
        missing: dict[str, MediaFile] = {}
        for medium in media:
            if medium.key in self._known:
                self._known.move_to_end(medium.key)
                made[medium.key] = self._known[medium.key]
            else:
                missing[medium.key] = medium
        for key, encoded in self._encode(list(missing.values())):
            made[key] = encoded
            self._remember(key, encoded)
        return made

    def _encode(self, media: list[MediaFile]) -> Iterator[tuple[str, Encoded]]:
        good: list[tuple[MediaFile, torch.Tensor]] = []
        for medium, patches in zip(media, self.files.decode(media), strict=True):
            if isinstance(patches, SampleError):
                yield medium.key, patches
            else:
                good.append((medium, patches))
        vision = self.files.vision
        for group in _groups(good):
            pixels = normalise(torch.cat([patches for _, patches in group]).to(self.device), vision)
            grids = [medium.plan.grid for medium, _ in group]
            frames = [(grid.h, grid.w) for grid in grids for _ in range(grid.t)]
            counts = [grid.tokens(vision.merge) for grid in grids]
            split = torch.split(encode(self.encoder, pixels, frames), counts)
            for (medium, _), features in zip(group, split, strict=True):
                yield medium.key, features.clone()  # not a view that keeps the whole group

    def _remember(self, key: str, encoded: Encoded) -> None:
        self._known[key] = encoded
        self._bytes += _size(encoded)
        while self._bytes > self.keep:
            _, dropped = self._known.popitem(last=False)
            self._bytes -= _size(dropped)


def _size(encoded: Encoded) -> int:
    return encoded.nbytes if isinstance(encoded, torch.Tensor) else 0


def _groups(media: Sequence[tuple[MediaFile, torch.Tensor]]) -> Iterator[list[tuple[MediaFile, torch.Tensor]]]:
    """Neighbours together while they have at most ENCODE_PATCHES patches; a larger one alone."""
    group: list[tuple[MediaFile, torch.Tensor]] = []
    for one in media:
        if group and sum(len(patches) for _, patches in group) + len(one[1]) > ENCODE_PATCHES:
            yield group
            group = []
        group.append(one)
    if group:
        yield group
