"""Clips whose frames carry their own number: what comes out, by whom, and from which bytes.

The reference is a full decode by PyAV through one filter graph (media_files.pyav_frames). It shares FFmpeg with the
fallback decoder, but neither the index nor the segments; DALI's decoders are independent of it.
"""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from data.media_files import (
    ALTREF,
    CLIPS,
    FAST,
    VISION,
    X264,
    X265,
    Frame,
    clip,
    hide,
    named_clip,
    number_of,
    pyav_frames,
    remux,
    superframe,
    turned,
    unpatchify,
)

from megatron_glmv.config.schema import DataConfig
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.media import Decoded, MediaDecoder
from megatron_glmv.data.patches import plan, resize
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import VIDEO, MediaPlan
from megatron_glmv.data.video_segments import segments

CONFIG = DataConfig()
DALI_CODECS = ("vp9", "vp8", "mjpeg")
DECODER = MediaDecoder(CONFIG, VISION)


@cache
def named(name: str) -> tuple[bytes, MediaFacts]:
    data = named_clip(name)
    return data, probe(VIDEO, name, data)


def planned(facts: MediaFacts, *frames: int) -> MediaPlan:
    """A plan that takes these frames, an even number of them, instead of the sampler's."""
    count = len(frames)
    assert count % 2 == 0
    usual = plan(facts, CONFIG, VISION)
    return replace(usual, frames=frames, grid=replace(usual.grid, t=count // 2), seconds=(0,) * (count // 2))


def decode(taken: MediaPlan, facts: MediaFacts, data: bytes) -> tuple[Decoded, list[Frame]]:
    done = DECODER.decode([(taken, facts, data)])[0]
    assert done.patches is not None, done.error
    return done, list(unpatchify(done.patches, taken))


def expected(data: bytes, taken: MediaPlan, turns: int = 0) -> Frame:
    """uint8 [F, height, width, 3] from the reference decoder."""
    whole = np.stack(pyav_frames(data))[list(taken.frames)]
    return resize(torch.from_numpy(np.rot90(whole, turns, (1, 2)).copy()), taken.height, taken.width).numpy()


@pytest.mark.parametrize("name", CLIPS)
def test_every_frame_equals_the_reference_and_is_the_picture_it_should_be(name: str) -> None:
    data, facts = named(name)
    assert not facts.error
    everything = planned(facts, *range(facts.frames))
    done, frames = decode(everything, facts, data)
    assert done.decoder == ("dali" if name.startswith(DALI_CODECS) else "pyav")
    assert np.array_equal(np.stack(frames), expected(data, everything))
    drop = CLIPS[name].get("drop")
    assert [number_of(frame) for frame in frames] == [n for n in range(48) if not drop or n % 3 != 2]
    assert facts.vfr == bool(drop)


@pytest.mark.parametrize("name", CLIPS)
def test_the_numbers_read_back_are_the_samplers(name: str) -> None:
    """GLM takes two frames a second: of 24 frames a second every twelfth, at a varying rate the first one due."""
    data, facts = named(name)
    taken = plan(facts, CONFIG, VISION)
    _, frames = decode(taken, facts, data)
    drawn = [number_of(frame) for frame in frames]
    due = [12 * i + (12 * i % 3 == 2) for i in range(4)]
    due = due[: int(facts.duration * 2)]
    assert drawn == due + due[-1:] * (len(due) % 2)
    seconds = facts.frame_seconds()[list(taken.frames)]
    assert np.allclose(seconds, np.array(drawn) / 24, atol=2e-3), "times are those at which the pictures were drawn"
    assert taken.seconds == tuple(int(t) for t in seconds[::2])


@pytest.mark.parametrize("name", [name for name in CLIPS if not name.endswith(".ts")])
def test_only_packets_of_the_needed_groups_are_read(name: str) -> None:
    """All other payloads are overwritten, and nothing changes."""
    data, facts = named(name)
    wanted = (facts.frames - 2, facts.frames - 5)
    table = facts.packets
    used = {packet for segment in segments(facts, wanted) for packet in segment.packets}
    starts = int((table.flags & 1).sum())
    if starts > 1:
        assert len(used) <= len(table) / starts * 2
    else:
        wanted = (2, 5)
        used = {packet for segment in segments(facts, wanted) for packet in segment.packets}
        assert len(used) <= 10
    blanked = bytearray(data)
    for packet in set(range(len(table))) - used:
        at, size = int(table.offset[packet]), int(table.size[packet])
        assert at >= 0
        blanked[at : at + size] = b"\xa5" * size
    assert bytes(blanked) != data
    taken = planned(facts, *wanted)
    _, frames = decode(taken, facts, bytes(blanked))
    assert np.array_equal(np.stack(frames), expected(data, taken))


def test_any_order_and_repeats_are_allowed() -> None:
    for name in ("vp9_altref.mp4", "hevc_open.mp4"):
        data, facts = named(name)
        wanted = (40, 3, 3, 17, 16, 40)
        _, frames = decode(planned(facts, *wanted), facts, data)
        assert tuple(number_of(frame) for frame in frames) == wanted


@pytest.mark.parametrize(
    ("codec", "options", "drop"),
    [("libvpx-vp9", FAST, 0), ("libvpx-vp9", ALTREF, 3), ("libx264", X264, 3), ("libx264", X264, 0)],
)
def test_what_an_edit_list_cuts_is_no_frame(codec: str, options: dict[str, str], drop: int) -> None:
    """A start that lies inside a group of pictures: those before it are decoded, never shown or counted."""
    source = clip("mp4", codec=codec, options=options, drop=drop)
    with av.open(io.BytesIO(source)) as box:
        ticks = box.streams.video[0].time_base
    assert ticks is not None
    data = remux(source, "mp4", shift=int(10 / 24 / ticks))
    facts = probe(VIDEO, "cut.mp4", data)
    assert not facts.error
    kept = [n for n in range(48) if (not drop or n % drop != drop - 1) and n >= 10]
    assert (facts.packets.flags & 4 != 0).sum() == (48 - 48 // drop if drop else 48) - len(kept) > 0, "cut packets"
    assert facts.frames == len(kept)
    taken = planned(facts, *range(0, len(kept) - 1, 2)[: len(kept) // 4 * 2])
    _, frames = decode(taken, facts, data)
    assert [number_of(frame) for frame in frames] == [kept[i] for i in taken.frames]
    assert np.array_equal(np.stack(frames), expected(data, taken))
    assert np.allclose(facts.frame_seconds(), (np.array(kept) - kept[0]) / 24, atol=2e-3)


@pytest.mark.parametrize(("codec", "options"), [("libx265", X265), ("libx264", X264), ("libvpx-vp9", FAST)])
def test_a_rotated_clip_is_shown_upright(codec: str, options: dict[str, str]) -> None:
    """A phone held upright writes landscape frames and a matrix; GLM sees what a player shows."""
    plain = clip("mp4", codec=codec, options=options)
    data = turned(plain)
    facts = probe(VIDEO, "phone.mp4", data)
    assert (facts.width, facts.height, facts.rotation) == (112, 160, 270)
    taken = planned(facts, 0, 12, 25, 47)
    done, frames = decode(taken, facts, data)
    assert done.decoder == ("dali" if "vp9" in codec else "pyav")
    assert np.array_equal(np.stack(frames), expected(plain, taken, turns=3))
    assert [number_of(np.rot90(frame, 1)) for frame in frames] == [0, 12, 25, 47]


@pytest.mark.parametrize(("name", "hidden"), [("vp8.webm", (5, 20, 21)), ("vp9.webm", (16,)), ("vp9.mp4", (16, 32))])
def test_hidden_frames_are_packets_and_no_frames(name: str, hidden: tuple[int, ...]) -> None:
    """Alternate references are decoded and never shown; DALI alone counts VP8's as frames. PyAV's encoders make none,
    so sound clips get their show bits cleared."""
    codec, kind = name.split(".")
    data = remux(named(name)[0], kind, change=hide(codec, *hidden))
    facts = probe(VIDEO, name, data)
    joined = len(hidden) if codec == "vp9" else 0  # the muxer puts a hidden VP9 frame into the next packet
    assert (len(facts.packets), facts.frames) == (48 - joined, 48 - len(hidden))
    taken = planned(facts, *range(0, facts.frames - 1, 2), *((0,) if len(range(0, facts.frames - 1, 2)) % 2 else ()))
    done, frames = decode(taken, facts, data)
    kept = [n for n in range(48) if n not in hidden]
    assert done.decoder == "dali"
    assert [number_of(frame) for frame in frames] == [kept[i] for i in taken.frames]
    assert np.array_equal(np.stack(frames), expected(data, taken))


def test_a_packet_of_a_hidden_frame_and_one_that_shows_it_is_one_frame() -> None:
    """VP9 superframes: packet 16, a key frame, is hidden and shown again by a second frame in the same packet."""
    show_slot_0 = b"\x88"  # marker, profile 0, show_existing_frame, slot
    hidden = hide("vp9", 16)

    def change(number: int, payload: bytes) -> bytes:
        return superframe(hidden(16, payload), show_slot_0) if number == 16 else payload

    data = remux(named("vp9.webm")[0], "webm", change=change)
    facts = probe(VIDEO, "super.webm", data)
    taken = planned(facts, 15, 16, 17, 40)
    done, frames = decode(taken, facts, data)
    assert done.decoder == "dali"
    assert [number_of(frame) for frame in frames] == [15, 16, 17, 40]


def test_a_leading_picture_of_an_open_group_comes_from_the_group_before() -> None:
    data, facts = named("hevc_open.mp4")
    table = facts.packets
    keys = np.flatnonzero(table.flags & 1)
    leading = [f for f, p in enumerate(table.order) if any(p > k and table.pts[p] < table.pts[k] for k in keys)]
    assert leading, "the clip has none: the test is void"
    taken = planned(facts, leading[0], leading[-1])
    _, frames = decode(taken, facts, data)
    assert [number_of(frame) for frame in frames] == [leading[0], leading[-1]]


def test_the_index_is_a_pure_function_of_the_bytes() -> None:
    for name in ("vp9_vfr.webm", "h264.avi"):
        data, facts = named(name)
        assert probe(VIDEO, name, data) == facts == MediaFacts.from_json(facts.to_json())


def test_many_clips_leave_no_memory_behind() -> None:
    """300 clips of three kinds after a warm-up: a decoder that leaks a frame a clip would leave 50 KiB each."""
    items = []
    for name in ("vp9.webm", "mjpeg.avi", "h264.mp4"):
        data, facts = named(name)
        items.append((plan(facts, CONFIG, VISION), facts, data))
    for _ in range(20):
        DECODER.decode(items)
    before = resident()
    for _ in range(100):
        assert all(done.patches is not None for done in DECODER.decode(items))
    assert resident() - before < 8 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
