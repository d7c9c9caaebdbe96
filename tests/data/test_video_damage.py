"""Damaged clips: each is refused with a reason, and none is ever answered with frames of another clip.

DALI hands out the buffer of the clip it decoded before where a file holds fewer frames than it promises, so a sound
clip of other pictures (100, 101, ...) is decoded before, beside and after every bad one, in this process.
"""

from __future__ import annotations

import random
import resource
import time
from functools import cache

import numpy as np
import pytest
from data.media_files import CLIPS, FAST, VISION, clip, number_of, remux, unpatchify

from megatron_glmv.config.schema import DataConfig
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.media import Decoded, Item, MediaDecoder
from megatron_glmv.data.patches import plan
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import VIDEO

CONFIG = DataConfig()
DECODER = MediaDecoder(CONFIG, VISION)
NAMES = [
    *("vp9.webm", "vp9.mp4", "vp8.webm", "mjpeg.avi", "mjpeg.mov"),
    *("h264.mp4", "h264.avi", "h264.ts", "hevc_open.mp4", "av1.mp4", "mpeg4.mp4"),
]


@cache
def sound(name: str) -> tuple[bytes, MediaFacts]:
    """The clip, index in front of the frames where the container has one, so that a cut loses frames only."""
    options = dict(CLIPS[name])
    kind = name.rsplit(".", 1)[1]
    if kind in ("mp4", "mov"):
        options["muxer"] = {"movflags": "+faststart"}
    data = clip(kind, **options)  # type: ignore[arg-type]
    return data, probe(VIDEO, name, data)


@cache
def other() -> tuple[Item, Decoded]:
    data = clip("webm", codec="libvpx-vp9", options=FAST, start=100)
    facts = probe(VIDEO, "other.webm", data)
    item = (plan(facts, CONFIG, VISION), facts, data)
    return item, DECODER.decode([item])[0]


def outcome(data: bytes, facts: MediaFacts | None = None, name: str = "bad") -> tuple[str, list[int]]:
    """(reason, []) or ("", numbers read back); fresh facts from the damaged bytes where none are given."""
    item, whole = other()
    assert whole.patches is not None
    facts = facts or probe(VIDEO, name, data)
    try:
        taken = plan(facts, CONFIG, VISION)
    except SampleError as error:
        return error.reason, []
    before, bad, after = DECODER.decode([item, (taken, facts, data), item])
    for neighbour in (before, after):
        assert neighbour.patches is not None
        assert np.array_equal(neighbour.patches, whole.patches)
    if bad.patches is None:
        assert bad.decoder == "none"
        assert bad.error
        return bad.error, []
    return "", [number_of(frame) for frame in unpatchify(bad.patches, taken)]


def cut(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


def flipped(data: bytes) -> bytes:
    damaged, rng = bytearray(data), random.Random(1)
    for _ in range(200):
        damaged[rng.randrange(int(len(data) * 0.3), int(len(data) * 0.7))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def hole(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(600) + data[middle + 600 :]


@pytest.mark.parametrize("damage", [cut, flipped, hole])
@pytest.mark.parametrize("name", NAMES)
def test_damage_is_found_with_a_reason(name: str, damage: object) -> None:
    assert callable(damage)
    reason, numbers = outcome(damage(sound(name)[0]), name=name)
    if name == "h264.ts" and damage is cut:
        assert numbers == [0, 12], "a transport stream has no end: cut at a packet, it is a shorter clip"
        return
    assert reason
    assert numbers == []


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(".ts")])
def test_frames_that_vanish_behind_the_index_are_never_replaced_by_stale_ones(name: str) -> None:
    """The index is of the sound file; the payloads are zeros, and DALI has another clip in its buffers."""
    data, facts = sound(name)
    table, blank = facts.packets, bytearray(data)
    for at, size in zip(table.offset.tolist(), table.size.tolist(), strict=True):
        blank[at : at + size] = bytes(size)
    reason, numbers = outcome(bytes(blank), facts)
    assert reason
    assert numbers == []
    assert "bytes, the index says" in outcome(cut(data), facts)[0]
    for damage in (flipped, hole):  # what still parses may decode (the shard's sha256 guards it), but to its own frames
        _, numbers = outcome(damage(data), facts)
        assert all(number < 48 for number in numbers)


def test_files_that_are_no_whole_videos_are_named() -> None:
    data = clip("mp4", codec="libvpx-vp9", options=FAST)
    for bad, words in {
        b"": "0 bytes",
        random.Random(0).randbytes(100_000): "Invalid data",
        data[: data.rindex(b"moov") - 4]: "moov atom not found",
        data[:40]: "Invalid data",
    }.items():
        assert words in outcome(bad)[0]


def claims(data: bytes, name: bytes, offset: int, order: str) -> bytes:
    at = data.index(name) + offset
    return data[:at] + (10**7).to_bytes(4, order) + data[at + 4 :]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "atom", "offset", "order"),
    [
        ("vp9.mp4", b"stsz", 12, "big"),
        ("h264.mp4", b"stsz", 12, "big"),
        ("vp9.mp4", b"stts", 12, "big"),
        ("mjpeg.avi", b"vids", 32, "little"),
    ],
)
def test_ten_million_claimed_frames_cost_nothing(name: str, atom: bytes, offset: int, order: str) -> None:
    bad = claims(sound(name)[0], atom, offset, order)
    outcome(b"")  # decodes the sound clip, which is not timed
    start, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reason, numbers = outcome(bad)
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 20  # KiB
    assert reason
    assert numbers == []


@pytest.mark.parametrize(("codec", "kind", "pixels"), [("vp9", "webm", "yuv420p"), ("vp8", "webm", "yuv420p")])
def test_a_stream_that_changes_its_size_is_refused_and_never_reaches_dali(codec: str, kind: str, pixels: str) -> None:
    """DALI's CPU back end sizes its buffers by the first frame and writes behind them."""
    encoder = {"vp9": "libvpx-vp9", "vp8": "libvpx"}[codec]
    first = clip(kind, codec=encoder, options=FAST, frames=24, pixels=pixels)
    second = clip(kind, codec=encoder, options=FAST, frames=24, pixels=pixels, size=(320, 240), start=24)
    joined = remux(first, kind, behind=second)
    assert probe(VIDEO, "joined", joined).uneven
    assert "decoded to 1x240x320x3" in outcome(joined)[0]


def test_a_stream_that_changes_its_pixel_layout_goes_to_pyav() -> None:
    first = clip("webm", codec="libvpx-vp9", options=FAST, frames=24)
    second = clip("webm", codec="libvpx-vp9", options=FAST, frames=24, start=24, pixels="yuv444p")
    joined = remux(first, "webm", behind=second)
    facts = probe(VIDEO, "joined", joined)
    assert facts.uneven
    assert outcome(joined) == ("", [0, 12, 24, 36])
    assert DECODER.decode([(plan(facts, CONFIG, VISION), facts, joined)])[0].decoder == "pyav"


def test_a_file_without_video_is_named() -> None:
    import io

    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as box:
        stream = box.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 44100, 0
        box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    assert outcome(out.getvalue())[0] == "no video stream"
