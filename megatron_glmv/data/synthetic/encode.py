"""Pixels to files: PNG and JPEG by Pillow, VP9 in WebM or MP4 by PyAV. Equal pixels give equal bytes.

VP9 is what DALI decodes on a CPU as well as on a GPU (profile 0, 8 bit 4:2:0).
"""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from typing import Any

import av
from av.video.stream import VideoStream
from PIL import Image

from megatron_glmv.data.synthetic.canvas import Pixels

PNG, JPEG = "png", "jpg"
WEBM, MP4 = "webm", "mp4"
FPS = 2
"""GLM samples two frames a second: it takes every frame of these clips."""

_VP9 = {
    "deadline": "realtime",
    "cpu-used": "8",
    "crf": "10",
    "b": "0",
    "lag-in-frames": "0",
    "auto-alt-ref": "0",
}
"""About 4 ms for four frames of 112 x 112; without lag every packet is shown at once."""


def encode_image(pixels: Pixels, suffix: str) -> bytes:
    """`pixels` [h, w, 3] as PNG (exact) or JPEG (quality 95, full chroma). Raises KeyError on another suffix."""
    out = BytesIO()
    options: dict[str, dict[str, Any]] = {
        PNG: {"format": "PNG", "compress_level": 1},
        JPEG: {"format": "JPEG", "quality": 95, "subsampling": 0},
    }
    Image.fromarray(pixels).save(out, **options[suffix])
    return out.getvalue()


def encode_video(frames: Pixels, suffix: str) -> bytes:
    """`frames` [F, h, w, 3] as VP9 at FPS frames a second, one thread. `suffix` is webm or mp4; h and w are even."""
    out = BytesIO()
    with av.open(out, "w", format=suffix, options={"fflags": "+bitexact"}) as container:
        stream: VideoStream = container.add_stream("libvpx-vp9", rate=FPS, options=_VP9)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, FPS)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()
