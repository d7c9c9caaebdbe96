"""Step 1: look at every sample once, decode its media, and write down what the other steps judge by.

Removes broken pairs: a conversation that is none, a medium that is missing, damaged or does not decode.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from megatron_glmv.data import image
from megatron_glmv.data.errors import DataError, SampleError
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.prepare import hashing, text
from megatron_glmv.data.prepare.options import Options
from megatron_glmv.data.prepare.source import Sample, Shard
from megatron_glmv.data.prepare.step import Entrant, verdict
from megatron_glmv.data.probe import probe
from megatron_glmv.data.shards import check_names
from megatron_glmv.data.types import IMAGE, VIDEO, Grid, Json, MediaPlan

VERSION = 1
MAX_PIXELS = 178_956_970
"""Twice Pillow's warning, where it refuses: nothing larger is decoded here."""


class Inspect:
    name = "inspect"

    def skipped(self, options: Options) -> str:
        return ""

    def identity(self, options: Options) -> Json:
        return {"version": VERSION}

    def lines(self, shard: Shard, entrants: Sequence[Entrant], options: Options) -> list[Json]:
        return [look(shard, entrant.sample) for entrant in entrants]


def look(shard: Shard, sample: Sample) -> Json:
    """The facts of one sample: `domain`, `media` in order, digest of the learned text; or why it is broken."""
    if sample.error:
        return verdict(sample.key, "broken", sample.error)
    try:
        check_names(sample.key, [name for _, name in sample.media()])
        media = [medium_facts(kind, name, shard.read(sample, name)) for kind, name in sample.media()]
    except (SampleError, DataError) as e:
        return verdict(sample.key, "broken", str(e))
    learned = text.digest(text.learned(sample.conversation))
    return {"key": sample.key, "domain": sample.domain, "media": media, "text": learned}


def medium_facts(kind: str, member: str, data: bytes) -> Json:
    """Size, contrast and hashes of one medium. Raises SampleError on damage."""
    facts = probe(kind, member, data)
    if facts.error:
        raise SampleError(member, facts.error)
    if facts.width * facts.height > MAX_PIXELS:
        raise SampleError(member, f"{facts.width} x {facts.height} pixels are over {MAX_PIXELS}")
    frames = [picture_levels(member, data)] if kind == IMAGE else video_levels(facts, data)
    found: dict[str, Any] = {"kind": kind, "member": member, "bytes": len(data)}
    found |= {name: asdict(facts)[name] for name in ("format", "width", "height")}
    if kind == VIDEO:
        found |= {"frames": facts.frames, "seconds": round(facts.duration, 3)}
    found["contrast"] = round(max(map(hashing.contrast, frames)), 2)
    found["hash"] = hashing.to_text(np.stack([hashing.perceptual(levels) for levels in frames]))
    return found


def open_picture(member: str, data: bytes) -> Image.Image:
    """As shown, RGB, decoded to its last line. Raises SampleError."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as e:  # each of Pillow's plugins has its own ways to fail on damaged files
        raise SampleError(member, f"image does not decode: {image.reason(e)}") from e


def picture_levels(member: str, data: bytes) -> Any:
    return hashing.grey(open_picture(member, data))


def video_levels(facts: MediaFacts, data: bytes) -> list[Any]:
    """[64, 64] of FRAMES frames in the middle of equal parts; only the groups of pictures around them are decoded."""
    import torch

    from megatron_glmv.data.video import Clip, decode_with_pyav

    wanted = tuple((2 * n + 1) * facts.frames // (2 * hashing.FRAMES) for n in range(hashing.FRAMES))
    side = hashing.SIDE
    plan = MediaPlan(VIDEO, facts.member, Grid(1, 1, 1), side, side, wanted)
    frames = decode_with_pyav(Clip(plan, facts, data), torch.device("cpu"))
    return [hashing.grey_of_rgb(frame.numpy()) for frame in frames]
