"""Videos and images that the tests of the media path make: small, with the frame's number drawn into each frame."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from megatron_glmv.config.schema import DataConfig, VisionConfig
from megatron_glmv.data.patches import plan
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import MediaPlan
from megatron_glmv.data.video import rgb_graph

VISION = VisionConfig(depth=1, hidden=8, heads=1, ffn=8, merger_ffn=8)
WIDTH, HEIGHT, BITS, CELL = 160, 112, 8, 16
Frame = NDArray[np.uint8]

FAST = {"deadline": "realtime", "cpu-used": "8"}
ALTREF = {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"}
X264 = {"preset": "ultrafast", "bf": "3", "b_strategy": "0"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=16:bframes=3:open-gop=1:pools=1"}
CLIPS: dict[str, dict[str, object]] = {
    "vp9.webm": {"codec": "libvpx-vp9", "options": FAST},
    "vp9.mp4": {"codec": "libvpx-vp9", "options": FAST},
    "vp9_altref.mp4": {"codec": "libvpx-vp9", "options": ALTREF},
    "vp9_444.webm": {"codec": "libvpx-vp9", "options": FAST, "pixels": "yuv444p"},
    "vp9_vfr.webm": {"codec": "libvpx-vp9", "options": FAST, "drop": 3},
    "vp8.webm": {"codec": "libvpx", "options": FAST},
    "vp8_altref.webm": {"codec": "libvpx", "options": ALTREF},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "mjpeg.mov": {"codec": "mjpeg", "pixels": "yuvj422p"},
    "h264.mp4": {"codec": "libx264", "options": X264},
    "h264_open.mp4": {"codec": "libx264", "options": X264 | {"x264-params": "open-gop=1"}},
    "h264_refresh.mp4": {"codec": "libx264", "options": X264 | {"bf": "0", "x264-params": "intra-refresh=1"}},
    "h264_fragments.mp4": {"codec": "libx264", "options": X264, "muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.ts": {"codec": "libx264", "options": X264},
    "h264.avi": {"codec": "libx264", "options": X264},
    "h264_vfr.mp4": {"codec": "libx264", "options": X264, "drop": 3},
    "hevc_open.mp4": {"codec": "libx265", "options": X265},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2"}},
}
FORMATS = {"webm": "webm", "mp4": "mp4", "mov": "mov", "avi": "avi", "ts": "mpegts", "mkv": "matroska"}


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> Frame:
    """uint8 [height, width, 3]: a moving coloured texture; the top row of cells is `number` in binary."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 2 + number * 3, y * 2 - number * 2, (x + y) + number * 5], axis=-1) % 256
    image = np.where(image > 127, 255 - image, image) + 60
    for bit in range(BITS):
        image[:CELL, bit * CELL : (bit + 1) * CELL] = 255 if number >> bit & 1 else 0
    return image.astype(np.uint8)


def number_of(frame: Frame) -> int:
    """The number that `picture` drew."""
    middle = frame[CELL // 2, CELL // 2 : BITS * CELL : CELL].astype(int).mean(axis=-1)
    return int(sum(1 << bit for bit, value in enumerate(middle) if value > 127))


def clip(
    kind: str,
    *,
    codec: str,
    frames: int = 48,
    fps: int = 24,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    pixels: str = "yuv420p",
    gop: int = 16,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    drop: int = 0,
    start: int = 0,
) -> bytes:
    """A video file of `picture(start)`, `picture(start + 1)`, ...; with `drop`, every drop-th picture is left out."""
    with (
        TemporaryDirectory() as folder,
        av.open(f"{folder}/clip", "w", format=FORMATS[kind], options=muxer or {}) as box,
    ):
        stream = box.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, fps)
        for n in range(frames):
            if drop and n % drop == drop - 1:
                continue
            frame = av.VideoFrame.from_ndarray(picture(start + n, *size), format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, fps)
            box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
        box.close()
        return Path(folder, "clip").read_bytes()


def named_clip(name: str) -> bytes:
    options = dict(CLIPS[name])
    return clip(name.rsplit(".", 1)[1], **options)  # type: ignore[arg-type]


def remux(
    data: bytes,
    kind: str,
    *,
    shift: int = 0,
    change: Callable[[int, bytes], bytes] = lambda number, payload: payload,
    behind: bytes = b"",
) -> bytes:
    """The same packets in another container, `shift` ticks earlier: times below zero become an edit list in mp4.

    `change` rewrites payloads by number; packets of the clip `behind` follow in the same stream.
    """
    out = io.BytesIO()
    end = number = 0
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", format=FORMATS[kind]) as box:
        stream = box.add_stream_from_template(source.streams.video[0])
        for part in (data, *filter(None, (behind,))):
            begin = end
            with av.open(io.BytesIO(part)) as packets:
                for packet in packets.demux(video=0):
                    if packet.size:
                        fresh = av.Packet(change(number, bytes(packet)))
                        fresh.pts, fresh.dts = packet.pts - shift + begin, packet.dts - shift + begin
                        fresh.duration, fresh.is_keyframe = packet.duration, packet.is_keyframe
                        fresh.time_base, fresh.stream = packet.time_base, stream
                        end, number = max(end, fresh.pts + packet.duration), number + 1
                        box.mux(fresh)
    return out.getvalue()


def hide(codec: str, *numbers: int) -> Callable[[int, bytes], bytes]:
    """A `change` that clears the show bit of VP8 packets, or of VP9 key frames of profile 0: decoded, never shown."""
    bit = {"vp8": 0x10, "vp9": 0x02}[codec]
    return lambda number, data: bytes([data[0] & ~bit]) + data[1:] if number in numbers else data


def superframe(*frames: bytes) -> bytes:
    """VP9 frames in one packet (VP9 bitstream specification, annex B)."""
    marker = bytes([0b110_01_000 | len(frames) - 1])
    return b"".join(frames) + marker + b"".join(len(f).to_bytes(2, "little") for f in frames) + marker


def turned(mp4: bytes) -> bytes:
    """The mp4 with a track matrix that shows it rotated by 90 degrees clockwise, as a phone held upright writes it."""
    at = mp4.index(b"tkhd") + 4 + 40
    matrix = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    return mp4[:at] + b"".join(v.to_bytes(4, "big", signed=True) for v in matrix) + mp4[at + 36 :]


def pyav_frames(data: bytes) -> list[Frame]:
    """Every frame, decoded from the start by PyAV with the conversion that DALI's CPU back end uses."""
    found: list[Frame] = []
    graph = None
    with av.open(io.BytesIO(data)) as box:
        box.streams.video[0].thread_count = 1
        for frame in box.decode(video=0):
            graph = graph or rgb_graph(frame)
            graph.push(frame)
            found.append(graph.pull().to_ndarray())
    return found


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def item(kind: str, name: str, data: bytes, config: DataConfig) -> tuple[MediaPlan, object, bytes]:
    """What MediaDecoder takes, from the bytes alone."""
    facts = probe(kind, name, data)
    return plan(facts, config, VISION), facts, data


def unpatchify(patches: torch.Tensor, planned: MediaPlan) -> Frame:
    """uint8 [N, V] -> uint8 [F, H, W, 3]: the inverse of the patch layout, written from its description alone."""
    t, h, w = planned.grid.t, planned.grid.h, planned.grid.w
    out = np.zeros((t * 2, h * 14, w * 14, 3), np.uint8)
    n = 0
    for pair in range(t):
        for block_row in range(h // 2):
            for block_column in range(w // 2):
                for row in (2 * block_row, 2 * block_row + 1):
                    for column in (2 * block_column, 2 * block_column + 1):
                        values = patches[n].numpy().reshape(3, 2, 14, 14)
                        where = np.s_[2 * pair : 2 * pair + 2, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
                        out[where] = values.transpose(1, 2, 3, 0)
                        n += 1
    return out


def same(a: Sequence[Frame], b: Sequence[Frame]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
