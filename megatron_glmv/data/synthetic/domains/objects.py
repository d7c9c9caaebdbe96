"""Coloured shapes in the cells of a picture, as counting, spatial relations and grounding ask about them.

Tier 0 has 4 x 4 cells of 28 pixels, one language token each.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_glmv.data.synthetic.canvas import COLOURS, SHAPES
from megatron_glmv.data.synthetic.domains.drawing import Box, Sheet
from megatron_glmv.data.synthetic.domains.problem import Draw

NAMES = tuple(COLOURS)
MOST = 999
"""Largest coordinate of a box in an answer."""


@dataclass(frozen=True)
class Thing:
    """One drawn object. `at` is its tight box in pixels, (row, column) its cell."""

    colour: str
    shape: str
    row: int
    column: int
    at: Box

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def place(draw: Draw, cells: int, row: int, column: int, colour: str, shape: str, *, loose: bool) -> Thing:
    """An object in a cell of a grid of `cells` x `cells`: filling 6/7 of it, or of any size and place in it."""
    cell = draw.side / cells
    if loose:
        size = round(cell * draw.rng.uniform(0.5, 0.85))
        room = cell - size
        left, top = column * cell + draw.rng.uniform(0, room), row * cell + draw.rng.uniform(0, room)
    else:
        size = round(cell * 6 / 7)
        left = top = (cell - size) / 2
        left, top = left + column * cell, top + row * cell
    left, top = round(left), round(top)
    return Thing(colour, shape, row, column, (left, top, left + size, top + size))


def paint(sheet: Sheet, things: tuple[Thing, ...]) -> None:
    for thing in things:
        sheet.shape(thing.shape, thing.at, thing.colour)


def coordinates(at: Box, width: int, height: int) -> list[int]:
    """[x1, y1, x2, y2] of a box in thousandths of the picture, 0 .. 999."""
    left, top, right, bottom = at
    return [
        min(MOST, round(v * 1000 / full))
        for v, full in zip((left, top, right, bottom), (width, height) * 2, strict=True)
    ]


def any_pair(draw: Draw) -> tuple[str, str]:
    return draw.pick(NAMES), draw.pick(SHAPES)
