"""What a decoder of any device has to fulfil: run on the CPU by test_nvdec.py, on a GPU by tests/gpu/test_dali.py."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from data.media_files import CLIPS, VISION, clip, number_of, unpatchify

from megatron_glmv.config.schema import DataConfig
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.media import Item, MediaDecoder
from megatron_glmv.data.patches import plan
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import VIDEO, MediaPlan
from megatron_glmv.data.video import Clip, decode_with_dali, decode_with_pyav

CONFIG = DataConfig()
CPU = torch.device("cpu")


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
