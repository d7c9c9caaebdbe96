"""The few bits of a video packet that decide how it may be decoded: VP8, VP9, MJPEG, H.264 and HEVC headers.

DALI's CPU back end sizes its buffers by the first frame and writes behind them when a later frame is larger or has
another pixel layout. So every layout that a packet declares is read here, and a stream that changes it goes elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Layout = tuple[int, ...]
"""(width, height, what else decides the pixel format)."""
CAN_CHANGE = frozenset({"vp8", "vp9", "mjpeg"})
"""Codecs whose layouts are read from their packets."""
_JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]", re.DOTALL)
VP9_SYNC = 0x498342
VP9_RGB = 7
AV1_FRAME_HEADER, AV1_FRAME = 3, 6
"""obu_type."""


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


def shows_frame(codec: str, data: bytes) -> bool:
    """False for the hidden reference frames of VP8 and VP9 (RFC 6386 9.1; VP9 bitstream specification 6.2)."""
    if codec == "vp8":
        return bool(data[0] >> 4 & 1)
    if codec == "vp9" and data[-1] >> 5 != 6:  # a superframe always shows its last frame
        bit = 3 if data[0] >> 4 & 3 != 3 else 2  # profile 3 has one reserved bit
        return bool((data[0] >> bit | data[0] >> bit - 2) & 1)  # show_existing_frame, show_frame
    return True


def check_units(codec: str, data: bytes, extradata: bytes) -> None:
    """Raises ValueError unless the packet is made of whole units and holds a picture, as its headers tell.

    Not checked: what is inside the pictures. H.264 and HEVC have units with a length of four bytes in front; parameter
    sets in a packet must be those of the container's `extradata`, or the size of the pictures could change on the way.
    """
    if codec in ("h264", "hevc"):
        at = 4 if codec == "h264" else 21
        if len(extradata) <= at or extradata[at] & 3 != 3:
            raise ValueError("the lengths of its units have not four bytes")
        picture = False
        for unit in _units(data):
            kind = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
            picture |= kind in (1, 5) if codec == "h264" else kind < 32
            if kind in ((7, 8) if codec == "h264" else (32, 33, 34)) and unit not in extradata:
                raise ValueError("brings its own parameter sets")
    elif codec == "av1":
        picture = any(kind in (AV1_FRAME_HEADER, AV1_FRAME) for kind in _av1_units(data))
    elif codec == "mpeg4":
        picture = b"\0\0\1\xb6" in data
    else:
        layouts(codec, data)  # a damaged header
        picture = True
    if not picture:
        raise ValueError("holds no picture")


def _units(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if not 0 < size <= len(data) - at:
            raise ValueError("a unit is cut or damaged")
        yield data[at : at + size]
        at += size


def _av1_units(data: bytes) -> Iterator[int]:
    """Types of the open bitstream units (AV1 bitstream specification, 5.3)."""
    at = 0
    while at < len(data):
        head = data[at]
        at += 2 if head & 4 else 1  # obu_extension_flag
        size, shift, more = 0, 0, head & 2  # obu_has_size_field: leb128
        while more and at < len(data):
            size, shift, more, at = size | (data[at] & 127) << shift, shift + 7, data[at] & 128, at + 1
        if not head & 2:
            size = len(data) - at
        if head & 0x81 or more or not 0 <= size <= len(data) - at:
            raise ValueError("a unit is cut or damaged")
        yield head >> 3 & 15
        at += size


def layouts(codec: str, data: bytes) -> set[Layout]:
    """Layouts that the packet itself declares (inter frames mostly none). Raises ValueError on a damaged header."""
    if codec == "vp8":
        return _vp8(data)
    if codec == "vp9":
        return {layout for frame in vp9_frames(data) for layout in _vp9(frame)}
    if codec == "mjpeg":
        return _mjpeg(data)
    return set()


def _vp8(data: bytes) -> set[Layout]:
    if data[0] & 1:  # an inter frame
        return set()
    if data[3:6] != b"\x9d\x01\x2a" or len(data) < 10:
        raise ValueError("VP8 key frame without its start code")
    return {(int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF)}


def _mjpeg(data: bytes) -> set[Layout]:
    """Every frame header anywhere in the packet counts, also one inside a thumbnail: that only costs speed."""
    found: set[Layout] = set()
    for match in _JPEG_FRAME.finditer(data):
        head = data[match.end() : match.end() + 20]
        components = head[7] if len(head) > 7 else 0
        if not 1 <= components <= 4 or len(head) < 8 + 3 * components:
            raise ValueError("JPEG frame header is cut")
        sampling = (head[9 + 3 * n] for n in range(components))
        found.add((int.from_bytes(head[5:7], "big"), int.from_bytes(head[3:5], "big"), match[0][1], head[2], *sampling))
    if not found:
        raise ValueError("JPEG without a frame header")
    return found


def vp9_frames(data: bytes) -> Iterator[bytes]:
    """Frames of a packet, which is one frame or a superframe (VP9 bitstream specification, annex B)."""
    marker = data[-1]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = 2 + count * width
    if marker >> 5 != 6 or len(data) < index or data[-index] != marker:
        yield data
        return
    at = 0
    for n in range(count):
        start = len(data) - index + 1 + n * width
        size = int.from_bytes(data[start : start + width], "little")
        if not 0 < size <= len(data) - index - at:
            raise ValueError("VP9 superframe index is damaged")
        yield data[at : at + size]
        at += size


class _Bits:
    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise ValueError("VP9 frame header is cut")
        return self.value >> self.left & ((1 << count) - 1)


def _vp9(frame: bytes) -> Iterator[Layout]:
    """uncompressed_header of the VP9 bitstream specification, 6.2, up to the frame size."""
    bits = _Bits(frame[:32])
    if bits.take(2) != 2:
        raise ValueError("VP9 frame marker is wrong")
    profile = bits.take(1) | bits.take(1) << 1
    if profile == 3 and bits.take(1):
        raise ValueError("VP9 profile is unknown")
    if bits.take(1):  # show_existing_frame
        return
    inter, shown, resilient = bits.take(1), bits.take(1), bits.take(1)
    intra_only = inter and not shown and bits.take(1)
    if inter and not resilient:
        bits.take(2)  # reset_frame_context
    colours: Layout = (profile, 8, 0, 3)
    if not inter or intra_only:
        if bits.take(24) != VP9_SYNC:
            raise ValueError("VP9 sync code is wrong")
        if not inter or profile > 0:
            colours = _vp9_colours(bits, profile)
    if inter:
        bits.take(8)  # refresh_frame_flags
        if not intra_only:
            bits.take(12)  # three references of four bits
            if bits.take(1) or bits.take(1) or bits.take(1):  # the size of a reference, declared before
                return
    width, height = bits.take(16) + 1, bits.take(16) + 1
    # an inter frame has the colours of its references; a declared size alone still tells a change
    yield (width, height) if inter and not intra_only else (width, height, *colours)


def _vp9_colours(bits: _Bits, profile: int) -> Layout:
    depth = (12 if bits.take(1) else 10) if profile >= 2 else 8
    rgb = bits.take(3) == VP9_RGB
    subsampling = 3
    if not rgb:
        bits.take(1)  # range
    if profile in (1, 3):
        subsampling = 0 if rgb else bits.take(2)
        bits.take(1)  # reserved
    return profile, depth, int(rgb), subsampling
