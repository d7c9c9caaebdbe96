"""Only the packets that the wanted frames need, as small Matroska files.

Decoders start at the first frame of a file (DALI reads no index), so frame 1,700 costs 5 s of decoding; a file that
begins at the key frame before it costs one group of pictures.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.facts import KEY, SHOWS, MediaFacts

MATROSKA_CODECS = {
    "vp8": "V_VP8",
    "vp9": "V_VP9",
    "mjpeg": "V_MJPEG",
    "av1": "V_AV1",
    "h264": "V_MPEG4/ISO/AVC",
    "hevc": "V_MPEGH/ISO/HEVC",
    "mpeg4": "V_MPEG4/ISO/ASP",
}
CONFIGURED = frozenset({"h264", "hevc", "av1", "mpeg4"})
"""Codecs whose decoder needs the container's extradata."""
CLUSTER = 1000
"""Blocks of a cluster; their times are 16 bit relative to it."""
TICK_NS = 40_000_000
"""Duration of every frame in a segment: frames are asked for by number, so any constant does."""


@dataclass(frozen=True)
class Segment:
    """Packets (decode order) that a decoder needs from a key frame on to give `frames` (numbers in the whole video)."""

    packets: tuple[int, ...]
    frames: tuple[int, ...]


def segments(facts: MediaFacts, wanted: Sequence[int]) -> list[Segment]:
    """Segments that give all `wanted` frames, each frame once, merged where they overlap, in order.

    A picture shown before its key frame (open GOP) needs the key frame before that; such leading pictures are left out
    of a segment that begins at their key frame, as nothing can decode them there. Raises SampleError for a frame that
    the video does not have.
    """
    table = facts.packets
    order, pts = table.order, table.pts
    keys = np.flatnonzero(table.flags & KEY)
    wanted = sorted(set(wanted))
    if wanted and not 0 <= wanted[0] <= wanted[-1] < len(order):
        raise SampleError(facts.member, f"frames {wanted[0]} .. {wanted[-1]} of {len(order)}")
    spans: list[tuple[int, int, list[int]]] = []
    for frame in wanted:
        last = int(order[frame])
        before = keys[keys <= last]
        usable = before[pts[before] <= pts[last]]
        first = int(usable[-1]) if len(usable) else int(keys[0])
        if spans and first <= spans[-1][1]:
            start, end, frames = spans.pop()
            spans.append((start, max(end, last), [*frames, frame]))
        else:
            spans.append((first, last, [frame]))
    found = []
    for first, last, frames in spans:
        packets = np.arange(first, last + 1)
        if first != keys[0]:
            packets = packets[pts[packets] >= pts[first]]
        if not np.isin(order[frames], packets).all():
            raise SampleError(facts.member, "times of the frames contradict the order of the packets")
        found.append(Segment(tuple(packets.tolist()), tuple(frames)))
    return found


def can_mux(facts: MediaFacts) -> bool:
    """The stream fits into Matroska as it is: H.264 and HEVC need length-prefixed units (avcC, hvcC)."""
    if facts.format in ("h264", "hevc"):
        return base64.b64decode(facts.extradata)[:1] == b"\1"
    return facts.format in MATROSKA_CODECS


def mux(facts: MediaFacts, segment: Segment, payload: Callable[[int], bytes]) -> tuple[bytes, list[int]]:
    """(Matroska file, numbers of the segment's frames among the frames that a decoder gives for this file)."""
    table = facts.packets
    packets = np.array(segment.packets)
    rank = np.empty(len(packets), np.int64)
    rank[np.argsort(table.pts[packets], kind="stable")] = np.arange(len(packets))
    shown = packets[(table.flags[packets] & SHOWS) != 0]
    shown = shown[np.argsort(table.pts[shown], kind="stable")]
    place = {int(packet): n for n, packet in enumerate(shown)}
    numbers = [place[int(table.order[frame])] for frame in segment.frames]

    turned = facts.rotation % 180 != 0
    width, height = (facts.height, facts.width) if turned else (facts.width, facts.height)
    track = _uint(0xD7, 1) + _uint(0x73C5, 1) + _uint(0x83, 1) + _uint(0x23E383, TICK_NS)
    track += _element(0x86, MATROSKA_CODECS[facts.format].encode())
    if facts.format in CONFIGURED and facts.extradata:
        track += _element(0x63A2, base64.b64decode(facts.extradata))
    track += _element(0xE0, _uint(0xB0, width) + _uint(0xBA, height))
    parts = [_element(0x1549A966, _uint(0x2AD7B1, TICK_NS)), _element(0x1654AE6B, _element(0xAE, track))]
    for start in range(0, len(packets), CLUSTER):
        base = int(rank[start : start + CLUSTER].min())
        blocks = [_uint(0xE7, base)]
        for n in range(start, min(start + CLUSTER, len(packets))):
            packet = segment.packets[n]
            flags = 0x80 if int(table.flags[packet]) & KEY else 0
            head = b"\x81" + (int(rank[n]) - base).to_bytes(2, "big", signed=True) + bytes([flags])
            blocks.append(_element(0xA3, head + payload(packet)))
        parts.append(_element(0x1F43B675, b"".join(blocks)))
    header = _uint(0x4286, 1) + _uint(0x42F7, 1) + _uint(0x42F2, 4) + _uint(0x42F3, 8)
    header += _element(0x4282, b"matroska") + _uint(0x4287, 4) + _uint(0x4285, 2)
    return _element(0x1A45DFA3, header) + _element(0x18538067, b"".join(parts)), numbers


def _element(ident: int, content: bytes) -> bytes:
    """EBML: id, length in eight bytes, content (RFC 8794; ids from RFC 9559)."""
    return ident.to_bytes((ident.bit_length() + 7) // 8, "big") + (1 << 56 | len(content)).to_bytes(8, "big") + content


def _uint(ident: int, value: int) -> bytes:
    return _element(ident, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big"))
