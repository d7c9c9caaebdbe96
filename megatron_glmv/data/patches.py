"""Pixels to patches, as GLM's processor counts and lays them out; everything here is a pure function.

Shapes: F frames, H and W pixels, N patches, V = 3 x temporal_patch x patch x patch values of a patch.
Formulas: the Glm4v image and video processors of transformers 5.23 (smart_resize, sample_frames, patchify).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from megatron_glmv.config.schema import DataConfig, VisionConfig
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.types import IMAGE, VIDEO, Grid, MediaPlan

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MAX_ASPECT = 200
_ROWS = 64
"""Patches normalised at a time: 300 kB of float32, which a core's cache holds."""


def smart_resize(
    frames: int, height: int, width: int, *, min_pixels: int, max_pixels: int, factor: int = 28, temporal: int = 2
) -> tuple[int, int]:
    """(height, width) in multiples of `factor` whose frames x height x width lies within the budget, aspect about kept.

    Raises ValueError for fewer frames than `temporal` and for an aspect ratio over 200.
    """
    if frames < temporal:
        raise ValueError(f"{frames} frames, at least {temporal} are needed")
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    aspect = max(height, width) / min(height, width)
    if aspect > MAX_ASPECT:
        raise ValueError(f"aspect ratio {aspect:.1f}, at most {MAX_ASPECT} is allowed")
    # round() to even, at exact halves, is part of the reference
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    total = round(frames / temporal) * temporal * rows * columns
    if total > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif total < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        rows, columns = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rows, columns


def sample_frames(facts: MediaFacts, fps: float, max_frames: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """GLM's choice of frames: (indices, their seconds), an even count, the last one repeated where it would be odd.

    `fps` frames a second while that makes at most `max_frames` (300 s at GLM's 2 fps and 600), else `max_frames` spread
    over the whole duration. Where the frame rate varies, the frame for a moment is the first one shown at or after it,
    which is what the reference's ceil(seconds x rate) means at a constant rate.
    """
    last, duration = facts.frames - 1, facts.duration
    seconds = facts.frame_seconds()
    if duration <= max_frames / fps:
        count = max(math.floor(duration * fps), 1)
        if facts.vfr:
            picked = np.searchsorted(seconds, np.arange(count) / fps - 1e-6).tolist()
        else:
            picked = [math.ceil(i * facts.fps / fps) for i in range(count)]
    elif max_frames >= facts.frames:
        picked = list(range(facts.frames))
    else:
        moments = np.linspace(0, duration, max_frames, endpoint=True)
        if facts.vfr:
            picked = np.searchsorted(seconds, moments - 1e-6).tolist()
        else:
            picked = [math.ceil(t * facts.fps) for t in moments.tolist()]
    indices = list(dict.fromkeys(min(last, i) for i in picked))
    if len(indices) % 2:
        indices.append(indices[-1])
    return tuple(indices), tuple(float(seconds[i]) for i in indices)


def plan(facts: MediaFacts, data: DataConfig, vision: VisionConfig) -> MediaPlan:
    """How a medium will be seen: grid, size and, for a video, frames and their whole seconds.

    Raises SampleError (with the member as key) for a medium that has an error, is over a cap or too elongated.
    """
    if facts.error:
        raise SampleError(facts.member, facts.error)
    if facts.bytes > data.max_media_bytes:
        raise SampleError(facts.member, f"{facts.bytes} bytes, data.max_media_bytes is {data.max_media_bytes}")
    if not 0 < facts.width * facts.height <= data.max_image_pixels:
        raise SampleError(
            facts.member, f"{facts.width} x {facts.height} pixels, data.max_image_pixels is {data.max_image_pixels}"
        )
    frames: tuple[int, ...] = ()
    seconds: tuple[int, ...] = ()
    count = vision.temporal_patch
    least, most = data.image_min_pixels, data.image_max_pixels
    if facts.kind == VIDEO:
        frames, times = sample_frames(facts, data.video_fps, data.video_max_frames)
        count = len(frames)
        seconds = tuple(int(t) for t in times[:: vision.temporal_patch])
        least, most = data.video_min_pixels, data.video_max_pixels
    elif facts.kind != IMAGE:
        raise SampleError(facts.member, f"unknown kind of medium {facts.kind!r}")
    unit = vision.patch * vision.merge
    try:
        height, width = smart_resize(
            count,
            facts.height,
            facts.width,
            min_pixels=least,
            max_pixels=most,
            factor=unit,
            temporal=vision.temporal_patch,
        )
    except ValueError as e:
        raise SampleError(facts.member, str(e)) from e
    grid = Grid(-(-count // vision.temporal_patch), height // vision.patch, width // vision.patch)
    return MediaPlan(facts.kind, facts.member, grid, height, width, frames, seconds)


def resize(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 [F, H, W, 3] -> uint8 [F, height, width, 3], bicubic with antialias, equal to the reference's.

    On CPU torch's own integer kernel; CUDA has none and goes through float32, as the reference does there.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    planes = frames.permute(0, 3, 1, 2)
    planes = planes.float() if frames.is_cuda else planes
    out = torch.nn.functional.interpolate(planes, (height, width), mode="bicubic", align_corners=False, antialias=True)
    if frames.is_cuda:
        out = out.round_().clamp_(0, 255).to(torch.uint8)
    return out.permute(0, 2, 3, 1)


def patchify(frames: torch.Tensor, vision: VisionConfig) -> torch.Tensor:
    """uint8 [F, H, W, 3] -> uint8 [N, V].

    Frames in time, 2 x 2 blocks of patches inside a frame, (3, temporal_patch, 14, 14) inside a patch. The last frame
    is repeated to fill `temporal_patch`, so a single image becomes one temporal patch.
    """
    t, p, m = vision.temporal_patch, vision.patch, vision.merge
    count, height, width, channels = frames.shape
    if pad := -count % t:
        frames = torch.cat([frames, frames[-1:].expand(pad, -1, -1, -1)]) if count > 1 else frames.expand(t, -1, -1, -1)
    rows, columns = height // p, width // p
    times = (count + pad) // t
    if frames.is_cuda:
        cut = frames.reshape(times, t, rows // m, m, p, columns // m, m, p, channels)
        #                    0      1  2          3  4  5             6  7  8
        return cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, channels * t * p * p)
    # A row of a patch is moved as one element of p bytes: half the time of moving bytes (1080p: 7 against 15 ms).
    first = frames[:1] if count == 1 else frames
    planes = np.ascontiguousarray(first.numpy().transpose(0, 3, 1, 2)).view(f"V{p}")
    shape = (len(planes) // t or 1, min(t, len(planes)), channels, rows // m, m, p, columns // m, m)
    #        0                      1                    2         3          4  5  6             7
    out = np.empty((times, rows // m, columns // m, m, m, channels, t, p), planes.dtype)
    out[...] = planes.reshape(shape).transpose(0, 3, 6, 4, 7, 2, 1, 5)
    return torch.from_numpy(out.view(np.uint8).reshape(-1, channels * t * p * p))


def normalise(patches: torch.Tensor, vision: VisionConfig) -> torch.Tensor:
    """uint8 [N, V] -> float32 [N, V]: (x / 255 - mean) / std with CLIP's constants, bit-equal to the reference's."""
    repeat = vision.patch_values // 3
    mean = (torch.tensor(CLIP_MEAN) * (1.0 / (1 / 255))).repeat_interleave(repeat).to(patches.device)
    std = (torch.tensor(CLIP_STD) * (1.0 / (1 / 255))).repeat_interleave(repeat).to(patches.device)
    if patches.is_cuda:
        return patches.to(torch.float32).sub_(mean).div_(std)
    # numpy asks for huge pages: without them, the faults of 50 MB of new pages take longer than all the arithmetic
    # (1080p: 9 against 32 ms). In blocks, so that the three steps find their numbers in the cache.
    out = torch.from_numpy(np.empty(patches.shape, np.float32))
    for start in range(0, len(patches), _ROWS):
        block = out[start : start + _ROWS]
        block.copy_(patches[start : start + _ROWS]).sub_(mean).div_(std)
    return out
