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
from megatron_glmv.data.video_headers import Layout, can_start, layouts, shows_frame

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
    layouts: set[Layout] = field(default_factory=set)
    """Frame sizes and pixel layouts that the packets declare."""
    decoded: list[av.VideoFrame] = field(default_factory=list)
    """The first ones; all of them where the file stores no times and the codec reorders (H.264 in AVI)."""


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
    except (av.FFmpegError, EOFError, IndexError, ValueError, ArithmeticError) as e:
        raise SampleError(member, said(e)) from e
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(repeated)
    if log:
        raise SampleError(member, log[0][2].strip())


def said(error: BaseException) -> str:
    """FFmpeg's own words, without the number and the name of the buffer that PyAV puts around them."""
    log = getattr(error, "log", None)
    words = getattr(error, "strerror", None) or str(error)
    return f"{words} ({log[1]}: {log[2].strip()})" if log else f"{type(error).__name__}: {words}"


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
    if found.codec in IN_ORDER and (np.diff(order) <= 0).any():
        raise SampleError(member, "times of the frames go back")
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
        mode=frame.format.name,
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
        uneven=uneven(found.layouts, frame.width, frame.height),
        table=table.encode(),
    )


def uneven(declared: set[Layout], width: int, height: int) -> bool:
    """The packets declare another frame size than the first frame's, or more than one pixel layout."""
    sizes = {layout[:2] for layout in declared}
    formats = {layout[2:] for layout in declared if len(layout) > 2}
    return not sizes <= {(width, height)} or len(formats) > 1


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
        if context is None:
            raise SampleError(member, "unknown video codec")
        context.thread_count = 1
        context.options = {"err_detect": "explode"}  # else a damaged slice is painted over
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
        unchecked = found.codec == "mjpeg"  # DALI paints over damage in it, without an error
        annex_b = found.extradata[:1] in (b"", b"\0")
        for packet in box.demux(stream):
            if packet.size:
                number = len(found.payloads)
                if packet.is_corrupt or packet.pts is None or number == MAX_PACKETS:
                    raise SampleError(member, f"packet {number} is cut, without a time, or one over {MAX_PACKETS}")
                payload = bytes(packet)
                starts = packet.is_keyframe and can_start(found.codec, payload, annex_b)
                shows = shows_frame(found.codec, payload)
                found.layouts |= layouts(found.codec, payload)
                found.payloads.append(payload)
                found.pts.append(packet.pts)
                found.positions.append(packet.pos if packet.pos is not None else -1)
                found.flags.append(KEY * starts + SHOWS * shows + CUT * packet.is_discard)
                found.end = max(found.end, packet.pts + (packet.duration or 0))
                packet.pts = number  # comes back on the decoded frame
            if timeless or unchecked or not found.decoded:  # rotation and matrix are certain only on a frame
                frames = stream.decode(packet)
                found.decoded += frames if timeless or not found.decoded else ()
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
