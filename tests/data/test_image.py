"""Images of every kind against Pillow: ImageOps.exif_transpose, then convert("RGB"), bit for bit on the CPU."""

from __future__ import annotations

import io
import resource
import struct
import time
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from data.media_files import VISION, encoded, unpatchify
from PIL import Image, ImageOps

from megatron_glmv.config.schema import DataConfig
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.media import Decoded, MediaDecoder
from megatron_glmv.data.patches import plan, resize
from megatron_glmv.data.probe import probe
from megatron_glmv.data.types import IMAGE, MediaPlan

CONFIG = DataConfig()
DECODER = MediaDecoder(CONFIG, VISION)


@cache
def photo(width: int = 150, height: int = 101) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 // width, y * 255 // height, (x * y // 40) % 256], -1)
    noise = np.random.default_rng(3).integers(-25, 26, base.shape)
    return Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))


def alpha() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def oriented(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return encoded(photo(), "JPEG", quality=90, exif=exif)


def animated(kind: str) -> bytes:
    return encoded(photo(), kind, save_all=True, append_images=[photo().rotate(90 * n) for n in (1, 2)], duration=100)


def sixteen() -> bytes:
    values = (np.arange(150 * 101).reshape(101, 150) * 4).astype(np.uint16)
    return encoded(Image.fromarray(values), "PNG")


KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg 4:2:0": (lambda: encoded(photo(), "JPEG", quality=85, subsampling=2), "dali"),
    "jpeg 4:2:2": (lambda: encoded(photo(), "JPEG", quality=85, subsampling=1), "dali"),
    "jpeg 4:4:4": (lambda: encoded(photo(), "JPEG", quality=85, subsampling=0), "dali"),
    "jpeg progressive": (lambda: encoded(photo(), "JPEG", progressive=True), "dali"),
    "jpeg grey": (lambda: encoded(photo().convert("L"), "JPEG"), "dali"),
    "jpeg cmyk": (lambda: encoded(photo().convert("CMYK"), "JPEG"), "dali"),
    **{f"jpeg exif {n}": ((lambda n=n: oriented(n)), "dali") for n in range(1, 9)},
    "png": (lambda: encoded(photo(), "PNG"), "dali"),
    "png palette": (lambda: encoded(photo().quantize(64), "PNG"), "dali"),
    "png palette, transparent": (lambda: encoded(photo().quantize(64), "PNG", transparency=3), "dali"),
    "png grey": (lambda: encoded(photo().convert("L"), "PNG"), "dali"),
    "png grey, alpha": (lambda: encoded(alpha().convert("LA"), "PNG"), "dali"),
    "png alpha": (lambda: encoded(alpha(), "PNG"), "dali"),
    "png 1 bit": (lambda: encoded(photo().convert("1"), "PNG"), "dali"),
    "png 16 bit": (sixteen, "pillow"),
    "webp": (lambda: encoded(photo(), "WEBP", quality=80), "dali"),
    "webp lossless": (lambda: encoded(photo(), "WEBP", lossless=True), "dali"),
    "webp alpha": (lambda: encoded(alpha(), "WEBP", lossless=True, exact=True), "dali"),
    "webp animated": (lambda: animated("WEBP"), "dali"),
    "bmp": (lambda: encoded(photo(), "BMP"), "dali"),
    "tiff": (lambda: encoded(photo(), "TIFF"), "dali"),
    "tiff lzw palette": (lambda: encoded(photo().quantize(64), "TIFF", compression="tiff_lzw"), "pillow"),
    "jpeg 2000": (lambda: encoded(photo(), "JPEG2000"), "dali"),
    "ppm": (lambda: encoded(photo(), "PPM"), "dali"),
    "gif": (lambda: encoded(photo(), "GIF"), "pillow"),
    "gif animated": (lambda: animated("GIF"), "pillow"),
    "avif": (lambda: encoded(photo(), "AVIF"), "pillow"),
}


def decode(data: bytes) -> tuple[Decoded, MediaPlan]:
    facts = probe(IMAGE, "0", data)
    taken = plan(facts, CONFIG, VISION)
    return DECODER.decode([(taken, facts, data)])[0], taken


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_equal_pillows(kind: str) -> None:
    make, decoder = KINDS[kind]
    data = make()
    done, taken = decode(data)
    assert done.patches is not None, done.error
    with Image.open(io.BytesIO(data)) as image:
        reference = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    facts = probe(IMAGE, "0", data)
    assert (facts.height, facts.width) == reference.shape[:2]
    sized = resize(torch.from_numpy(reference)[None], taken.height, taken.width).numpy()
    frames = unpatchify(done.patches, taken)
    assert len(frames) == 2
    assert np.array_equal(frames[0], sized[0])
    assert np.array_equal(frames[1], sized[0]), "an image fills both frames of its temporal patch"
    assert done.decoder == decoder


def test_sixteen_bits_are_clipped_as_transformers_does() -> None:
    """The rule is visible in the pixels: everything above 255 is white."""
    done, taken = decode(sixteen())
    assert done.patches is not None
    frame = unpatchify(done.patches, taken)[0]
    assert (frame[5:] == 255).all()
    assert frame[0, 0, 0] < 60


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return head + chunk(b"IDAT", zlib.compress(bytes(1 << 16))) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    data = encoded(photo(), "PNG")
    body = b"Comment\0\0" + zlib.compress(bytes(200 << 20), 9)
    bomb = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return data[:33] + bomb + data[33:]


def gif_of(frames: int) -> bytes:
    data = encoded(Image.new("P", (8, 8)), "GIF")
    block = data[data.index(b"\x2c") : -1]
    return data[:-1] + block * (frames - 1) + data[-1:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png_claiming(20_000, 20_000), "400000000 pixels"),
        (png_claiming(13_000, 13_000), "13000 x 13000 pixels, data.max_image_pixels"),
        (png_claiming(200_000, 100_000), "20000000000 pixels"),
        (png_claiming(11_000, 11_000), "does not decode"),
        (png_claiming(0, 5), "not a readable image"),
        (text_bomb(), ""),
        (gif_of(100_000), ""),
    ],
    ids=["20k", "13k", "beyond the header cap", "within the cap, no pixels", "empty", "text", "gif of 100,000"],
)
def test_bombs_cost_little(data: bytes, words: str) -> None:
    """Under 2 s and 1 GiB each, refused with its size; what has a sound first frame is used."""
    start, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        reason = decode(data)[0].error
    except SampleError as error:
        reason = error.reason
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 20  # KiB
    assert words in reason


def bad_crc() -> bytes:
    data = bytearray(encoded(photo(), "PNG"))
    data[data.index(b"IDAT") + 20] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize("kind", ["jpeg 4:2:0", "jpeg progressive", "png", "webp", "gif", "tiff", "avif"])
def test_a_cut_image_is_an_error_and_its_neighbours_are_not_touched(kind: str) -> None:
    whole = KINDS[kind][0]()
    good = KINDS["png palette"][0]()
    facts = probe(IMAGE, "good", good)
    item = (plan(facts, CONFIG, VISION), facts, good)
    alone = DECODER.decode([item])[0]
    for data in (whole[: len(whole) // 2], bad_crc() if kind == "png" else whole[:20]):
        found = probe(IMAGE, "bad", data)
        if found.error:
            assert "not a readable image" in found.error
            continue
        before, bad, after = DECODER.decode([item, (plan(found, CONFIG, VISION), found, data), item])
        assert bad.patches is None
        assert bad.error
        for neighbour in (before, after):
            assert neighbour.patches is not None and alone.patches is not None
            assert torch.equal(neighbour.patches, alone.patches)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_what_is_no_image_is_named(data: bytes) -> None:
    assert "not a readable image" in probe(IMAGE, "0", data).error


def test_too_elongated_an_image_is_refused_by_its_ratio() -> None:
    with pytest.raises(SampleError, match="aspect ratio 300"):
        plan(probe(IMAGE, "0", encoded(Image.new("RGB", (9000, 30)), "PNG")), CONFIG, VISION)
