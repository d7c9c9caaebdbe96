"""Media to patches: one call for everything a step needs, batched through DALI, one bad file never hurting another.

Shapes: F frames, N patches, V values of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from megatron_glmv.config.schema import DataConfig, VisionConfig
from megatron_glmv.data import dali, image, video
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.patches import patchify, resize
from megatron_glmv.data.types import IMAGE, MediaPlan

Item = tuple[MediaPlan, MediaFacts, bytes]
T = TypeVar("T")
GPU_THREADS = 8
"""DALI's threads on a GPU: each drives one stream, and a chip has up to seven engines."""
BATCH_PIXELS = 1 << 26
"""Decoded pixels of one DALI call for images (192 MiB)."""


@dataclass(frozen=True)
class Decoded:
    """What became of one medium: `patches` uint8 [N, V], or None with the reason in `error`."""

    patches: torch.Tensor | None
    decoder: str
    """dali_gpu (NVDEC, nvJPEG), dali, pyav, pillow, or none when it failed."""
    error: str = ""


class MediaDecoder:
    """Decodes, resizes and cuts into patches. DALI is loaded at the first `decode`; do not fork a process after it.

    Each medium goes to the first back end that takes it and to the next where that fails: DALI on the GPU (where
    `device` is one), DALI on the CPU, and Pillow or PyAV, whose word is the last. Patches lie on `device`, by whomever
    they were decoded. `threads` are DALI's (None: 1 on the CPU, 8 on a GPU); the resize uses torch's own setting.
    `backends` are DALI's instead of those of the device.
    """

    def __init__(
        self,
        data: DataConfig,
        vision: VisionConfig,
        device: str | torch.device = "cpu",
        *,
        threads: int | None = None,
        backends: tuple[dali.Dali, ...] | None = None,
    ) -> None:
        self.data = data
        self.vision = vision
        self.device = torch.device(device)
        self.threads = threads or (GPU_THREADS if self.device.type == "cuda" else 1)
        self._backends = backends

    def decode(self, items: Sequence[Item]) -> list[Decoded]:
        """One result for each item, in order. Never raises for what a file holds."""
        if self._backends is None:
            self._backends = dali.load(self.device, self.threads)
        done: dict[int, Decoded] = {}
        images: list[int] = []
        videos: list[int] = []
        for n, (plan, facts, data) in enumerate(items):
            if reason := self._refused(plan, facts, data):
                done[n] = Decoded(None, "none", reason)
            else:
                (images if facts.kind == IMAGE else videos).append(n)
        for back in self._backends:
            self._images_by(back, items, [n for n in images if n not in done], done)
            self._videos_by(back, items, [n for n in videos if n not in done], done)
        for n in images:
            if n not in done:
                done[n] = self._attempt(self._by_pillow, items[n], "pillow")
        for n in videos:
            if n not in done:
                done[n] = self._attempt(self._by_pyav, items[n], "pyav")
        return [done[n] for n in range(len(items))]

    def _refused(self, plan: MediaPlan, facts: MediaFacts, data: bytes) -> str:
        """Caps and identity, before any decoder sees the bytes."""
        if facts.error:
            return facts.error
        if len(data) != facts.bytes:
            return f"{len(data)} bytes, the index says {facts.bytes}"
        if len(data) > self.data.max_media_bytes:
            return f"{len(data)} bytes, data.max_media_bytes is {self.data.max_media_bytes}"
        if not 0 < facts.width * facts.height <= self.data.max_image_pixels:
            return f"{facts.width} x {facts.height} pixels, data.max_image_pixels is {self.data.max_image_pixels}"
        if (plan.kind, plan.member) != (facts.kind, facts.member):
            return f"the plan is for {plan.kind} {plan.member}"
        return ""

    def _images_by(
        self, back: dali.Dali, items: Sequence[Item], which: Sequence[int], done: dict[int, Decoded]
    ) -> None:
        def decode(group: Sequence[int]) -> list[torch.Tensor]:
            pixels = image.decode_with_dali(back, [items[n][1:] for n in group])
            return [self._sized(items[n], p) for n, p in zip(group, pixels, strict=True)]

        able = [n for n in which if image.dali_can(items[n][1])]
        if back.device == "gpu":
            able = [n for n in able if image.gpu_can(*items[n][1:])]
        for group in _groups(able, lambda n: items[n][1].width * items[n][1].height, BATCH_PIXELS):
            for n, pixels in _batch_or_each(decode, group).items():
                done[n] = self._patches(pixels, back.name)

    def _videos_by(
        self, back: dali.Dali, items: Sequence[Item], which: Sequence[int], done: dict[int, Decoded]
    ) -> None:
        clips = {n: video.Clip(*items[n]) for n in which if video.dali_can(back, items[n][1])}

        def decode(group: Sequence[int]) -> list[torch.Tensor]:
            return video.decode_with_dali(back, [clips[n] for n in group], self.device)

        for n, pixels in _batch_or_each(decode, list(clips)).items():
            done[n] = self._patches(pixels, back.name)

    def _by_pillow(self, item: Item) -> torch.Tensor:
        return self._sized(item, image.decode_with_pillow(*item[1:]))

    def _by_pyav(self, item: Item) -> torch.Tensor:
        return video.decode_with_pyav(video.Clip(*item), self.device)

    def _sized(self, item: Item, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [H, W, 3] -> uint8 [1, plan.height, plan.width, 3]."""
        plan, facts, _ = item
        if tuple(pixels.shape) != (facts.height, facts.width, 3):
            found = "x".join(map(str, pixels.shape))
            raise SampleError(facts.member, f"an image of {facts.height}x{facts.width} decoded to {found}")
        return resize(pixels[None].to(self.device), plan.height, plan.width)

    def _patches(self, frames: torch.Tensor, decoder: str) -> Decoded:
        return Decoded(patchify(frames, self.vision), decoder)

    def _attempt(self, decode: Callable[[Item], torch.Tensor], item: Item, decoder: str) -> Decoded:
        try:
            return self._patches(decode(item), decoder)
        except SampleError as e:
            return Decoded(None, "none", e.reason)


def _groups(items: Sequence[int], cost: Callable[[int], int], most: int) -> list[list[int]]:
    """Neighbours together while their cost stays within `most`; a costlier one alone."""
    groups: list[list[int]] = []
    size = 0
    for item in items:
        if groups and size + cost(item) <= most:
            groups[-1].append(item)
            size += cost(item)
        else:
            groups.append([item])
            size = cost(item)
    return groups


def _batch_or_each(decode: Callable[[Sequence[int]], list[T]], group: Sequence[int]) -> dict[int, T]:
    """Results of those that decode: all in one call, or after a failure one by one (DALI loses the whole call)."""
    if not group:
        return {}
    try:
        return dict(zip(group, decode(group), strict=True))
    except (RuntimeError, SampleError):
        found: dict[int, T] = {}
        if len(group) > 1:
            for n in group:
                found |= _batch_or_each(decode, [n])
        return found
