"""Images: what their headers say, and their pixels by DALI or Pillow (bit-equal on the CPU).

Shapes: H, W pixels as shown. Rules: EXIF orientation is applied; alpha and palette transparency are dropped, not
composited (what transformers does for a path); of an animation the first frame is taken; 16-bit grey goes to Pillow,
which clips it as transformers does (DALI would scale it).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from megatron_glmv.data.dali import Dali
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.types import IMAGE

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the caps are ours, checked before decoding
MAX_HEADER_PIXELS = 1 << 34
"""A header that claims more is refused when the index is made; data.max_image_pixels is the cap that matters."""
DALI_FORMATS = frozenset({"jpeg", "mpo", "png", "webp", "bmp", "tiff", "jpeg2000", "ppm"})
DALI_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"})
"""Others differ: DALI scales 16-bit grey where Pillow clips it, and rounds a TIFF's 16-bit palette another way."""
ORIENTATION = 0x0112
_ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")
"""Of an object in memory: the index and the list of rejects are pure functions of the bytes."""


def image_facts(member: str, data: bytes) -> MediaFacts:
    """Size as shown, format and mode from the header. Raises SampleError when no decoder knows the file."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            name, mode = (image.format or "").lower(), image.mode
            # Pillow's size of a TIFF is the one as shown already
            turned = name != "tiff" and 0 < width * height <= MAX_HEADER_PIXELS and orientation(image) >= 5
    except Exception as e:  # each of Pillow's plugins has its own ways to fail on damaged files
        raise SampleError(member, f"not a readable image: {reason(e)}") from e
    if not 0 < width * height <= MAX_HEADER_PIXELS:
        raise SampleError(member, f"the header claims {width} x {height} pixels")
    if turned:
        width, height = height, width
    return MediaFacts(kind=IMAGE, member=member, bytes=len(data), format=name, mode=mode, width=width, height=height)


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1 .. 8. A PNG is not decoded to look for an eXIf chunk behind its pixels."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    value = image.getexif().get(ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def reason(error: BaseException) -> str:
    """One line: the deepest cause, without the addresses that libraries put into it."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = _ADDRESS.sub("", str(error)).strip()
    return f"{type(error).__name__}: {words.splitlines()[0] if words else ''}"[:300]


def dali_can(facts: MediaFacts) -> bool:
    """DALI decodes this image on the CPU, and to the same pixels as Pillow."""
    palette = facts.format == "tiff" and facts.mode == "P"
    return facts.format in DALI_FORMATS and facts.mode in DALI_MODES and not palette


def gpu_can(facts: MediaFacts, data: bytes) -> bool:
    """nvJPEG decodes it, to Pillow's pixels within a few levels: whole JPEGs in colour or grey.

    All others are decoded on the CPU: DALI's GPU decoder would do so too, or convert CMYK in another way.
    """
    # nvJPEG fills up a file that was cut; behind the end, cameras write zeros at most
    return facts.format == "jpeg" and facts.mode in ("RGB", "L") and data.rstrip(b"\0").endswith(b"\xff\xd9")


def decode_with_dali(dali: Dali, items: Sequence[tuple[MediaFacts, bytes]]) -> list[torch.Tensor]:
    """uint8 [H, W, 3] of each image on the decoder's device, decoded in one call.

    Raises RuntimeError when any of them fails (the whole call is lost then).
    """
    options: dict[str, Any] = {"device": dali.device}
    if dali.device == "gpu":
        options["jpeg_fancy_upsampling"] = True  # else chroma differs from the CPU's
    with dali.context():
        batch = dali.ndd.batch([np.frombuffer(data, np.uint8) for _, data in items])
        return [dali.torch(image) for image in dali.ndd.decoders.image(batch, **options).tensors]


def decode_with_pillow(facts: MediaFacts, data: bytes) -> torch.Tensor:
    """uint8 [H, W, 3]. Raises SampleError on a damaged file."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            shown = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as e:  # as above
        raise SampleError(facts.member, f"image does not decode: {reason(e)}") from e
    return torch.from_numpy(np.array(shown))
