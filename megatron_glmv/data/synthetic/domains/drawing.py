"""Drawing with Pillow: a sheet with smooth edges, fonts and themes.

Coordinates are pixels of the finished picture, from the upper left corner; a rectangle (left, top, right, bottom) ends
in front of right and bottom.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from megatron_glmv.data.synthetic.canvas import COLOURS, Pixels, Rgb, blank
from megatron_glmv.data.synthetic.domains.lattice import Template

Box = tuple[float, float, float, float]
OVERSAMPLE = 2
FONTS = (
    "DejaVuSans-Bold",
    "DejaVuSerif-Bold",
    "DejaVuSansMono-Bold",
    "STIXGeneralBol",
    "DejaVuSans",
    "DejaVuSerif",
)
"""Those that matplotlib carries, so that pictures do not depend on what is installed."""
GREY: Rgb = tuple(int(v) for v in blank()[0, 0])  # type: ignore[assignment]
THEMES: tuple[tuple[Rgb, Rgb], ...] = (
    ((248, 248, 245), (20, 20, 24)),
    ((24, 28, 36), (245, 245, 245)),
    ((226, 232, 240), (30, 41, 99)),
    ((252, 243, 220), (84, 44, 16)),
)
"""(background, ink)."""
PLAIN_INKS: tuple[Rgb, ...] = ((255, 255, 255), (0, 0, 0), (255, 250, 200), (20, 20, 80))
"""Inks of the plain sheet, which is CLIP's mean grey: a tiny model learns on it with half the samples."""


@dataclass(frozen=True)
class Style:
    """Font and colours of one sample."""

    SIZES: ClassVar[tuple[int, int]] = (len(FONTS), len(THEMES))
    template: Template
    font: str
    background: Rgb
    ink: Rgb


def style_of(template: Template, *, plain: bool) -> Style:
    """The style that a (font, theme) names; `plain` has the grey background in every theme."""
    font, theme = template
    background, ink = (GREY, PLAIN_INKS[theme]) if plain else THEMES[theme]
    return Style(template, FONTS[font], background, ink)


@lru_cache
def _folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def font_file(name: str) -> str:
    return str(_folder() / f"{name}.ttf")


@lru_cache(maxsize=512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Basic layout: what complex layout makes depends on a library that is not everywhere."""
    return ImageFont.truetype(font_file(name), size, layout_engine=ImageFont.Layout.BASIC)


class Sheet:
    """A picture of `width` x `height` pixels to draw on."""

    def __init__(self, width: int, height: int, style: Style) -> None:
        self.width, self.height, self.style = width, height, style
        self._image = Image.new("RGB", (width * OVERSAMPLE, height * OVERSAMPLE), style.background)
        self._draw = ImageDraw.Draw(self._image)

    def pixels(self) -> Pixels:
        """[height, width, 3]."""
        return np.asarray(self._image.resize((self.width, self.height), Image.Resampling.BOX))

    def box(self, at: Box, fill: Rgb | None = None, outline: Rgb | None = None, width: float = 1) -> None:
        left, top, right, bottom = (value * OVERSAMPLE for value in at)
        self._draw.rectangle(
            (left, top, right - 1, bottom - 1), fill=fill, outline=outline, width=round(width * OVERSAMPLE)
        )

    def ellipse(self, at: Box, fill: Rgb | None = None, outline: Rgb | None = None, width: float = 1) -> None:
        left, top, right, bottom = (value * OVERSAMPLE for value in at)
        self._draw.ellipse(
            (left, top, right - 1, bottom - 1), fill=fill, outline=outline, width=round(width * OVERSAMPLE)
        )

    def polygon(self, points: list[tuple[float, float]], fill: Rgb | None = None, outline: Rgb | None = None) -> None:
        scaled = [(x * OVERSAMPLE, y * OVERSAMPLE) for x, y in points]
        self._draw.polygon(scaled, fill=fill, outline=outline, width=2 * OVERSAMPLE)

    def line(self, points: list[tuple[float, float]], fill: Rgb | None = None, width: float = 2) -> None:
        scaled = [(x * OVERSAMPLE, y * OVERSAMPLE) for x, y in points]
        self._draw.line(scaled, fill=fill or self.style.ink, width=round(width * OVERSAMPLE))

    def arrow(self, start: tuple[float, float], end: tuple[float, float], fill: Rgb | None = None) -> None:
        """A straight arrow with a filled head."""
        (x0, y0), (x1, y1) = start, end
        length = max(1e-6, float(np.hypot(x1 - x0, y1 - y0)))
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        head = max(5.0, self.width * 0.045)
        neck = (x1 - ux * head, y1 - uy * head)
        self.line([start, neck], fill, max(2.0, self.width * 0.015))
        side = head * 0.6
        self.polygon(
            [end, (neck[0] - uy * side, neck[1] + ux * side), (neck[0] + uy * side, neck[1] - ux * side)],
            fill or self.style.ink,
        )

    def text(
        self, at: tuple[float, float], text: str, size: float, fill: Rgb | None = None, anchor: str = "mm"
    ) -> None:
        """`size`: pixels of an em. `anchor`: Pillow's, by default the middle of the text."""
        place = (at[0] * OVERSAMPLE, at[1] * OVERSAMPLE)
        face = font(self.style.font, max(4, round(size * OVERSAMPLE)))
        self._draw.text(place, text, fill=fill or self.style.ink, font=face, anchor=anchor)

    def text_width(self, text: str, size: float) -> float:
        return font(self.style.font, max(4, round(size * OVERSAMPLE))).getlength(text) / OVERSAMPLE

    def fit(self, text: str, width: float, size: float) -> float:
        """The largest size up to `size` at which `text` is at most `width` wide."""
        wide = self.text_width(text, size)
        return size if wide <= width else size * width / wide

    def shape(self, shape: str, at: Box, colour: str) -> None:
        """A filled shape whose tight box is `at`. Raises KeyError on a shape that is not in canvas.SHAPES."""
        left, top, right, bottom = at
        fill = COLOURS[colour]
        if shape == "circle":
            self.ellipse(at, fill)
        elif shape == "square":
            self.box(at, fill)
        elif shape == "triangle":
            self.polygon([((left + right) / 2, top), (right - 0.5, bottom - 0.5), (left, bottom - 0.5)], fill)
        elif shape == "cross":
            arm_x, arm_y = (right - left) * 0.34, (bottom - top) * 0.34
            self.box((left + arm_x, top, right - arm_x, bottom), fill)
            self.box((left, top + arm_y, right, bottom - arm_y), fill)
        else:
            raise KeyError(shape)
