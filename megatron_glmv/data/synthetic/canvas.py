"""Pictures of 112 x 112 pixels, drawn by pasting small cached masks.

Everything that a question is about lies in a cell of 28 x 28 pixels, which is one language token of GLM (a 2 x 2 block
of 14-pixel patches). Objects of 30 pixels on a free 3 x 3 grid take a tiny model three times the samples: the same
object then falls on other borders of patches in each place.

Shapes: h, w height and width of a mask; F frames.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
Mask = NDArray[np.float32]
Rgb = tuple[int, int, int]

SIDE = 112
CELL = 28
WHITE: Rgb = (255, 255, 255)

COLOURS: dict[str, Rgb] = {
    "red": (225, 40, 40),
    "green": (40, 185, 60),
    "blue": (50, 80, 235),
    "yellow": (245, 225, 50),
    "purple": (190, 60, 215),
    "cyan": (60, 220, 225),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIGITS = tuple("0123456789")

_GREY: Rgb = (123, 117, 104)
"""CLIP's mean: an empty patch is about 0 behind the normalisation, and stays small behind the encoder's first norm. A
shade off it would be blown up to full size there: a tiny model then needs twice the samples (measured)."""
_OVERSAMPLE = 4


def blank() -> Pixels:
    """An empty picture [SIDE, SIDE, 3]."""
    return np.full((SIDE, SIDE, 3), _GREY, np.uint8)


def paste(picture: Pixels, top: int, left: int, mask: Mask, colour: Rgb) -> None:
    """Blend `colour` into `picture` under `mask` [h, w] of 0 .. 1, in place. What leaves one side enters opposite."""
    h, w = mask.shape
    place = np.ix_(np.arange(top, top + h) % SIDE, np.arange(left, left + w) % SIDE)
    alpha = mask[..., None]
    picture[place] = (picture[place] * (1 - alpha) + np.asarray(colour, np.float32) * alpha + 0.5).astype(np.uint8)


def bar(picture: Pixels, top: int, left: int, height: int, width: int, colour: Rgb) -> None:
    """A filled rectangle inside the picture."""
    picture[top : top + height, left : left + width] = colour


@lru_cache
def shape_mask(shape: str, size: int) -> Mask:
    """A filled shape [size, size]. Raises KeyError on a shape that is not in SHAPES."""
    n = size * _OVERSAMPLE
    image = Image.new("L", (n, n), 0)
    draw = ImageDraw.Draw(image)
    end, arm = n - 1, round(n * 0.34)
    if shape == "circle":
        draw.ellipse((0, 0, end, end), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, end, end), fill=255)
    elif shape == "triangle":
        draw.polygon([(n // 2, 0), (end, end), (0, end)], fill=255)
    elif shape == "cross":
        draw.rectangle((arm, 0, end - arm, end), fill=255)
        draw.rectangle((0, arm, end, end - arm), fill=255)
    else:
        raise KeyError(shape)
    return _mask(image.resize((size, size), Image.Resampling.BOX))


def draw_shape(picture: Pixels, top: int, left: int, shape: str, size: int, colour: str) -> None:
    """A shape in its colour, wrapped around the sides as `paste` does."""
    paste(picture, top, left, shape_mask(shape, size), COLOURS[colour])


@lru_cache
def digit_mask(digit: str, height: int) -> Mask:
    """A rendered digit [height, about 2/3 height], in the font that Pillow carries."""
    image = Image.new("L", (2 * height, 2 * height), 0)
    font = ImageFont.load_default(size=1.35 * height)
    ImageDraw.Draw(image).text((height // 2, 0), digit, fill=255, font=font, stroke_width=1, stroke_fill=255)
    glyph = image.crop(image.getbbox())
    return _mask(glyph.resize((round(0.66 * height), height), Image.Resampling.BICUBIC))


def _mask(image: Image.Image) -> Mask:
    return (np.asarray(image) / 255).astype(np.float32)
