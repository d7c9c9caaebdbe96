"""What a decoder of any device has to fulfil: run on the CPU by test_nvdec.py, on a GPU by tests/gpu/test_dali.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from data.media_files import CLIPS, VISION, clip, encoded, number_of, unpatchify
from PIL import Image, ImageDraw

from megatron_glmv.config.schema import DataConfig
from megatron_glmv.data import image
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.image import dali_can, gpu_can
from megatron_glmv.data.media import Item, MediaDecoder
from megatron_glmv.data.patches import plan, resize
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import IMAGE, VIDEO, MediaPlan
from megatron_glmv.data.video import Clip, decode_with_dali, decode_with_pyav

CONFIG = DataConfig()
CPU = torch.device("cpu")
KINDS = ("4:4", "2:2", "2:0")


@cache
def media(name: str, size: tuple[int, int] | None = None) -> tuple[MediaPlan, MediaFacts, bytes]:
    """A clip of CLIPS as a decoder takes it, with the sampler's frames. The index stands before the frames."""
    options = dict(CLIPS[name]) | ({"size": size} if size else {})
    kind = name.rsplit(".", 1)[1]
    if kind in ("mp4", "mov"):
        options["muxer"] = {"movflags": "+faststart"}
    data = clip(kind, **options)  # type: ignore[arg-type]
    facts = probe(VIDEO, name, data)
    return plan(facts, CONFIG, VISION), facts, data


def decode_all(decoder: MediaDecoder, taken: MediaPlan, facts: MediaFacts, data: bytes) -> tuple[str, list[int]]:
    """(recorded decoder, numbers read back from the pictures)."""
    (done,) = decoder.decode([(taken, facts, data)])
    assert done.patches is not None, done.error
    return done.decoder, [number_of(frame) for frame in unpatchify(done.patches.cpu(), taken)]


def differences(
    decoder: MediaDecoder, taken: MediaPlan, facts: MediaFacts, data: bytes
) -> tuple[int, float, list[int], list[int]]:
    """Every frame at its own size, by the decoder's first back end and by PyAV: (largest, mean, numbers, PyAV's)."""
    decoder.decode([])  # loads DALI
    assert decoder._backends
    whole = tuple(range(facts.frames))
    native = replace(taken, frames=whole, height=facts.height, width=facts.width)
    (ours,) = decode_with_dali(decoder._backends[0], [Clip(native, facts, data)], decoder.device)
    theirs = decode_with_pyav(Clip(native, facts, data), CPU)
    apart = (ours.cpu().int() - theirs.int()).abs()
    numbers, expected = ([number_of(frame.numpy()) for frame in frames] for frames in (ours.cpu(), theirs))
    return int(apart.max()), float(apart.float().mean()), numbers, expected


def refuses_vanished_frames(decoder: MediaDecoder, good: Item, victim: Item) -> None:
    """A clip that lost its frames, between two sound ones: a reason, and the neighbours as ever, three ways it can go:
    cut and indexed anew, cut behind its index, and emptied behind its index (DALI would return the clip before)."""
    (whole,) = decoder.decode([good])
    assert whole.patches is not None
    taken, facts, data = victim
    cut = data[: len(data) * 6 // 10]
    blank = bytearray(data)
    for at, size in zip(facts.packets.offset.tolist(), facts.packets.size.tolist(), strict=True):
        blank[at : at + size] = bytes(size)
    fresh = probe(VIDEO, "cut", cut)
    assert fresh.error
    try:
        plan(fresh, CONFIG, VISION)
    except SampleError as error:
        assert error.reason == fresh.error
    else:
        raise AssertionError("a cut clip was planned")
    for bad in ((taken, facts, cut), (taken, facts, bytes(blank))):
        before, broken, after = decoder.decode([good, bad, good])
        assert broken.patches is None and broken.decoder == "none" and broken.error
        for neighbour in (before, after):
            assert neighbour.patches is not None
            assert np.array_equal(neighbour.patches.cpu(), whole.patches.cpu())


def page() -> Image.Image:
    """Black strokes on white, the hardest there is for a resize and for chroma."""
    sheet = Image.new("RGB", (800, 1000), "white")
    pen = ImageDraw.Draw(sheet)
    for row in range(40):
        pen.text((20, 20 + 24 * row), f"{row}: The quick brown fox jumps over the lazy dog, {row * 7919}.", "black")
    return sheet


def photograph(width: int = 1920, height: int = 1080) -> Image.Image:
    """Gradients with the noise of a sensor, in blocks of four pixels."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 // width, y * 255 // height, (x * y // 4000) % 256], -1)
    noise = np.random.default_rng(0).normal(0, 8, (height // 4, width // 4, 3)).repeat(4, 0).repeat(4, 1)
    return Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))


def jpegs() -> dict[str, bytes]:
    """Kinds that a GPU decodes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    small = photograph(480, 320)
    return {
        **{f"4:{kind}": encoded(small, "JPEG", quality=90, subsampling=n) for n, kind in enumerate(KINDS)},
        "progressive": encoded(small, "JPEG", quality=90, progressive=True),
        "grey": encoded(small.convert("L"), "JPEG", quality=90),
        "turned": encoded(small, "JPEG", quality=90, exif=exif),
        "page": encoded(page(), "JPEG", quality=90),
        "1080p": encoded(photograph(), "JPEG", quality=90),
    }


def image_difference(decoder: MediaDecoder, data: bytes) -> tuple[int, float]:
    """Pixels as decoded by the decoder's first back end, and by Pillow: (largest, mean)."""
    decoder.decode([])  # loads DALI
    assert decoder._backends
    facts = probe(IMAGE, "0", data)
    assert dali_can(facts) and gpu_can(facts, data)
    (ours,) = image.decode_with_dali(decoder._backends[0], [(facts, data)])
    apart = (ours.cpu().int() - image.decode_with_pillow(facts, data).int()).abs()
    return int(apart.max()), float(apart.float().mean())


def resize_difference(device: torch.device, picture: Image.Image, height: int, width: int) -> tuple[int, float]:
    """The resize of a device beside the CPU's: (largest, mean)."""
    pixels = torch.from_numpy(np.array(picture))[None]
    apart = (resize(pixels.to(device), height, width).cpu().int() - resize(pixels, height, width).int()).abs()
    return int(apart.max()), float(apart.float().mean())


def growth(decoder: MediaDecoder, items: Sequence[Item], used: Callable[[], int], warm: int, rounds: int) -> int:
    """Bytes by which `used` grows while all items are decoded `rounds` times, after `warm` times."""
    for _ in range(warm):
        decoder.decode(items)
    before = used()
    for _ in range(rounds):
        assert all(done.patches is not None for done in decoder.decode(items))
    return used() - before
