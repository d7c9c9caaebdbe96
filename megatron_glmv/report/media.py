"""Small pictures for the page, as data URIs: it shows what the model saw without asking any server or disk."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from megatron_glmv.data.types import VIDEO

SIDE = 168
"""Longest side of a shown picture in pixels; smaller ones are not enlarged here but by the page."""
FRAMES = 6
"""Frames of a video's strip, evenly spread."""
MAX_PIXELS = 1 << 26
MAX_SECONDS_DECODED = 60.0


class MediaUnreadable(Exception):
    """The file is not there, is no medium, or is too large for a page."""


def thumbnails(kind: str, path: Path) -> list[str]:
    """Data URIs: one for an image, up to FRAMES for a video. Raises MediaUnreadable."""
    try:
        pictures = _frames(path) if kind == VIDEO else [_open(path)]
    except MediaUnreadable:
        raise
    except Exception as error:  # decoders raise what they like on a broken file, and a page does without one picture
        raise MediaUnreadable(f"{path.name}: {error}") from error
    return [_uri(picture) for picture in pictures]


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise MediaUnreadable(f"{path.name} has {image.width} x {image.height} pixels")
        image.draft("RGB", (SIDE, SIDE))
        return image.convert("RGB")


def _frames(path: Path) -> list[Image.Image]:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise MediaUnreadable(f"{path.name} has {stream.width} x {stream.height} pixels")
        shown = []
        for frame in container.decode(stream):
            shown.append(frame.to_image())
            shown[-1].thumbnail((SIDE, SIDE))
            if frame.time is not None and frame.time > MAX_SECONDS_DECODED:
                break
    if not shown:
        raise MediaUnreadable(f"{path.name} has no frame")
    count = min(FRAMES, len(shown))
    return [shown[round(k * (len(shown) - 1) / max(1, count - 1))] for k in range(count)]


def _uri(picture: Image.Image) -> str:
    picture.thumbnail((SIDE, SIDE))
    best = None
    for name, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": 85})):
        buffer = io.BytesIO()
        picture.save(buffer, name, **options)
        data = buffer.getvalue()
        if best is None or len(data) < len(best[1]):  # drawings are smaller as PNG, photographs as JPEG
            best = (name.lower(), data)
    assert best is not None
    return f"data:image/{best[0]};base64,{base64.b64encode(best[1]).decode('ascii')}"
