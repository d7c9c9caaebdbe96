"""What a video file holds, by demuxing it once: true times, key frames, what is odd about it.

Shapes: P packets in decode order. A file whose packets are not all there is refused here, because DALI decodes such a
file without an error, to frames of whatever clip it decoded before.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import av
import av.logging
import numpy as np

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.facts import CUT, KEY, MAX_PACKETS, SHOWS, MediaFacts, PacketTable
from megatron_glmv.data.types import VIDEO

MAX_BYTES = 1 << 31
MAX_PIXELS = 8192 * 8192
IN_ORDER = frozenset({"vp8", "vp9", "mjpeg", "av1"})
"""Codecs whose packets are stored in the order in which their frames are shown."""
NO_TIME = -(1 << 62)


@dataclass
class Demuxed:
    """The packets of the first video stream and what the container says about it."""

    codec: str
    codec_name: str
    tag: bytes
    extradata: bytes
    container: str
    width: int
    height: int
    rate: float
    time_base: tuple[int, int]
    claimed_packets: int
    claimed_seconds: float
    start: int
    alone: bool
    payloads: list[bytes] = field(default_factory=list)
    pts: list[int] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    end: int = 0
    """Largest pts + duration."""
    decoded: list[av.VideoFrame] = field(default_factory=list)
    """The first frame; all of them where the file stores no times and the codec reorders (H.264 in AVI)."""


@contextmanager
def complaints(member: str) -> Iterator[None]:
    """FFmpeg's demuxers resynchronise after damage and only log it: a logged error counts as one.

    Raises SampleError for what FFmpeg raises or logs.
    """
    level, repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # else a message arrives while the next file is read
    try:
        with av.logging.Capture() as log:
            yield
    except (av.FFmpegError, EOFError, IndexError, ValueError) as e:
        raise SampleError(member, f"{type(e).__name__}: {e}") from e
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(repeated)
    if log:
        raise SampleError(member, log[0][2].strip())


def video_facts(member: str, data: bytes) -> MediaFacts:
    """Everything that planning and decoding need. Raises SampleError on a file that is not whole."""
    with complaints(member):
        found = demux(member, data)
        table = packet_table(found, data)
    order = table.order
    if not found.decoded or not len(order) or not table.flags[0] & KEY:
        raise SampleError(member, "no decodable frame")
    num, den = found.time_base
    pts = table.pts[order]
    steps = np.diff(pts)
    tick = num / den
    have = (found.end - found.start) * tick
    longest = int(steps.max()) if len(steps) else 0
    short = found.alone and found.claimed_seconds - have > max(0.5, 3 * longest * tick)
    if found.claimed_packets > len(table) or short:
        count = f"{len(table)} of {found.claimed_packets or '?'} packets"
        raise SampleError(member, f"holds {count}, {have:.2f} of {found.claimed_seconds:.2f} s")
    if len(steps) and steps.min() <= 0:
        raise SampleError(member, "two frames have the same time")
    vfr = len(steps) > 1 and longest - int(steps.min()) > max(2, 0.05 * float(np.median(steps)))
    fps = frame_rate(found.rate, len(pts), float(pts[-1] - pts[0]) * tick, tick)
    span = (found.end - int(pts[0])) * tick if vfr else len(pts) / fps
    frame = found.decoded[0]
    rotation = int(frame.rotation) % 360
    if rotation % 90:
        raise SampleError(member, f"rotated by {rotation} degrees")
    width, height = (frame.width, frame.height) if rotation % 180 == 0 else (frame.height, frame.width)
    return MediaFacts(
        kind=VIDEO,
        member=member,
        bytes=len(data),
        format=found.codec,
        width=width,
        height=height,
        rotation=rotation,
        frames=len(pts),
        fps=len(pts) / span if vfr else fps,
        duration=span,
        vfr=vfr,
        time_base=found.time_base,
        container=found.container,
        tag=found.tag.hex(),
        extradata=base64.b64encode(found.extradata).decode(),
        matrix=int(frame.colorspace),
        table=table.encode(),
    )


def frame_rate(declared: float, frames: int, seconds: float, tick: float) -> float:
    """Frames per second at a constant rate: the declared one where the times bear it out, else the measured one.

    `seconds` lie between the first and the last frame. Times rounded to milliseconds measure badly on short clips.
    """
    if frames < 2:
        return declared if declared > 0 else 1.0
    if declared > 0 and abs(seconds - (frames - 1) / declared) <= max(2 * tick, 0.01 * seconds):
        return declared
    return (frames - 1) / seconds


def demux(member: str, data: bytes) -> Demuxed:
    """All packets of the first video stream. Raises SampleError and what PyAV raises."""
    if not 0 < len(data) <= MAX_BYTES:
        raise SampleError(member, f"{len(data)} bytes, allowed are 1 .. {MAX_BYTES}")
    with av.open(io.BytesIO(data), "r") as box:
        stream = next(iter(box.streams.video), None)
        if stream is None:
            raise SampleError(member, "no video stream")
        context = stream.codec_context
        context.thread_count = 1
        if not 0 < context.width * context.height <= MAX_PIXELS:
            raise SampleError(member, f"{context.width} x {context.height} pixels, allowed are 1 .. {MAX_PIXELS}")
        base = stream.time_base
        if base is None:
            raise SampleError(member, "no time base")
        claimed = float(stream.duration * base) if stream.duration else (box.duration or 0) / 1e6
        found = Demuxed(
            codec=context.codec.canonical_name,
            codec_name=context.codec.name,
            tag=context.codec_tag.encode("latin-1"),
            extradata=context.extradata or b"",
            container=box.format.name,
            width=context.width,
            height=context.height,
            rate=float(stream.average_rate or 0),
            time_base=(base.numerator, base.denominator),
            claimed_packets=stream.frames,
            claimed_seconds=claimed,
            start=stream.start_time or 0,
            alone=len(box.streams) == 1,
        )
        timeless = found.container == "avi" and found.codec not in IN_ORDER
        annex_b = found.extradata[:1] in (b"", b"\0")
        for packet in box.demux(stream):
            if packet.size:
                number = len(found.payloads)
                if packet.is_corrupt or packet.pts is None or number == MAX_PACKETS:
                    raise SampleError(member, f"packet {number} is cut, without a time, or one over {MAX_PACKETS}")
                payload = bytes(packet)
                starts = packet.is_keyframe and can_start(found.codec, payload, annex_b)
                shows = shows_frame(found.codec, payload)
                found.payloads.append(payload)
                found.pts.append(packet.pts)
                found.positions.append(packet.pos if packet.pos is not None else -1)
                found.flags.append(KEY * starts + SHOWS * shows + CUT * packet.is_discard)
                found.end = max(found.end, packet.pts + (packet.duration or 0))
                packet.pts = number  # comes back on the decoded frame
            if timeless or not found.decoded:  # rotation and matrix are certain only on a frame
                found.decoded += stream.decode(packet)
        if timeless:
            for rank, frame in enumerate(found.decoded):
                found.pts[frame.pts or 0] = rank
    return found


def packet_table(found: Demuxed, data: bytes) -> PacketTable:
    """Packets with their places in the file, found behind the positions that the demuxer reports (a block's start)."""
    offsets = []
    for payload, position in zip(found.payloads, found.positions, strict=True):
        offsets.append(data.find(payload, position, position + 64 + len(payload)) if position >= 0 else -1)
    sizes = [len(payload) for payload in found.payloads]
    return PacketTable(*(np.array(column, np.int64) for column in (offsets, sizes, found.pts, found.flags)))


def shows_frame(codec: str, data: bytes) -> bool:
    """False for the hidden reference frames of VP8 and VP9 (RFC 6386 9.1; VP9 bitstream specification 6.2)."""
    if codec == "vp8":
        return bool(data[0] >> 4 & 1)
    if codec == "vp9" and data[-1] >> 5 != 6:  # a superframe always shows its last frame
        bit = 3 if data[0] >> 4 & 3 != 3 else 2  # profile 3 has one reserved bit
        return bool((data[0] >> bit | data[0] >> bit - 2) & 1)  # show_existing_frame, show_frame
    return True


def can_start(codec: str, data: bytes, annex_b: bool) -> bool:
    """A decoder may start here: H.264 needs an IDR, HEVC an IRAP; NVDEC cannot resume at a recovery point."""
    if codec not in ("h264", "hevc"):
        return True
    heads: list[int] = []
    if annex_b:
        heads = [unit[0] for unit in data.split(b"\0\0\1")[1:] if unit]
    at = 0
    while not annex_b and at + 4 < len(data):
        heads.append(data[at + 4])
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    return any(head & 31 == 5 if codec == "h264" else 16 <= head >> 1 & 63 <= 21 for head in heads)
