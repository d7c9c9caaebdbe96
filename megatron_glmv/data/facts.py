"""What is known of one medium from its container alone: enough to plan tokens and to decode only what is needed.

Shapes: P packets in decode order, F shown frames in presentation order.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import MISSING, dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.types import Json

KEY, SHOWS, CUT = 1, 2, 4
"""Packet flags: any decoder may start here; yields a frame; removed by an edit list."""
MAX_PACKETS = 1 << 20


@dataclass(frozen=True)
class PacketTable:
    """Packets of a video in decode order, each array [P] int64.

    `offset` is where the payload lies in the file, -1 where it is not stored in one piece (MPEG-TS, header stripping);
    `pts` counts ticks of the file's time base; `flags` is a sum of KEY, SHOWS and CUT.
    """

    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    pts: NDArray[np.int64]
    flags: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pts)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """[F]: packet of each frame. A frame's number is its rank by time among packets that show and are not cut."""
        shown = np.flatnonzero((self.flags & SHOWS != 0) & (self.flags & CUT == 0))
        return shown[np.argsort(self.pts[shown], kind="stable")]

    @property
    def contiguous(self) -> bool:
        """Every payload can be sliced out of the file."""
        return bool((self.offset >= 0).all())

    def encode(self) -> str:
        """Differences along the packets, deflated: about 3 bytes a packet instead of 40 as numbers in JSON."""
        rows = np.stack([self.offset, self.size, self.pts, self.flags])
        return base64.b85encode(zlib.compress(np.diff(rows, axis=1, prepend=0).astype("<i8").tobytes(), 6)).decode()

    @classmethod
    def decode(cls, text: str) -> PacketTable:
        """Inverse of `encode`. Raises ValueError on damaged text."""
        try:
            inflate = zlib.decompressobj()
            raw = inflate.decompress(base64.b85decode(text), 32 * MAX_PACKETS)
        except (zlib.error, ValueError) as e:
            raise ValueError(f"packet table: {e}") from e
        if not inflate.eof or len(raw) % 32:
            raise ValueError("packet table: cut or too long")
        rows = np.cumsum(np.frombuffer(raw, "<i8").reshape(4, -1), axis=1)
        return cls(*rows)


@dataclass(frozen=True, kw_only=True)
class MediaFacts:
    """One image or video as its container describes it; a pure function of the bytes.

    `error` is the reason why a medium cannot be used (all sizes are 0 then): planning it raises SampleError.
    """

    kind: str
    """types.IMAGE or types.VIDEO."""
    member: str
    """Name of the shard member (or file) that holds the bytes."""
    bytes: int = 0
    """Length of the file: bytes of another length are refused before a decoder sees them."""
    format: str = ""
    """Image format (png, jpeg, ...) or video codec (vp9, h264, ...), lower case."""
    width: int = 0
    """Pixels as shown: EXIF orientation or rotation applied."""
    height: int = 0
    error: str = ""
    mode: str = ""
    """Pillow's mode of an image (RGB, P, CMYK, I;16, ...); FFmpeg's pixel layout of a video (yuv420p, ...), empty in
    indices made before it was kept."""
    rotation: int = 0
    """Degrees counter-clockwise (0, 90, 180, 270) by which decoded video frames are turned to be shown."""
    frames: int = 0
    """Shown frames of a video."""
    fps: float = 0.0
    """Frames per second (mean of them where the rate varies)."""
    duration: float = 0.0
    """Seconds."""
    vfr: bool = False
    """The frame rate varies: frames are chosen by their times instead of by rate."""
    time_base: tuple[int, int] = (1, 1000)
    """Seconds of one tick of the packets' pts, as a fraction."""
    container: str = ""
    tag: str = ""
    """Codec tag of the container as hex, for the fallback decoder."""
    extradata: str = ""
    """Codec configuration of the container, base64."""
    matrix: int = 2
    """AVColorSpace of the file: 1 BT.709, 2 unspecified, 5, 6 BT.601, 9 BT.2020. Frames are converted with BT.601."""
    uneven: bool = False
    """Frame size or pixel layout changes on the way, which DALI's CPU back end does not survive."""
    table: str = ""
    """PacketTable, encoded."""

    @cached_property
    def packets(self) -> PacketTable:
        """Raises SampleError when the table is damaged."""
        try:
            return PacketTable.decode(self.table)
        except ValueError as e:
            raise SampleError(self.member, str(e)) from e

    def frame_seconds(self) -> NDArray[np.float64]:
        """[F] float64: time of each shown frame in seconds from the first one, true also where the rate varies."""
        if not self.vfr:
            return np.arange(self.frames, dtype=np.float64) / self.fps
        pts = self.packets.pts[self.packets.order]
        return np.asarray((pts - pts[0]) * (self.time_base[0] / self.time_base[1]), np.float64)

    def to_json(self) -> Json:
        """Fields that differ from their defaults."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        return {name: value for name, (value, default) in values.items() if default is MISSING or value != default}

    @classmethod
    def from_json(cls, values: Json) -> MediaFacts:
        """Raises TypeError on unknown fields."""
        values = dict(values)
        if "time_base" in values:
            num, den = values["time_base"]
            values["time_base"] = (int(num), int(den))
        return cls(**values)
