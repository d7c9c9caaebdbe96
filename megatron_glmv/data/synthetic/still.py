"""A picture with one object on a 3 x 3 grid, a digit at its right and tally marks under it: five questions, one glance.

Several questions about one picture give several times the signal for one pass of the vision encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_glmv.data.synthetic import canvas
from megatron_glmv.data.synthetic.canvas import CELL, COLOURS, DIGITS, SHAPES, Pixels
from megatron_glmv.data.synthetic.grid import PLACES, row_and_column
from megatron_glmv.data.synthetic.task import pick

SIZE = 24
"""Pixels along one side of the object and of the digit."""
JITTER = 2
"""The object lies at most this far from the middle of its cell."""
MARKS = 6
"""Most tally marks; each has a slot of its own, and which slots are filled says nothing but their number."""
SLOT, MARK_WIDTH, MARK_HEIGHT = 18, 6, 22


@dataclass(frozen=True)
class Still:
    colour: str
    shape: str
    place: str
    count: int
    digit: str
    pixels: Pixels
    """[SIDE, SIDE, 3]."""


def draw(rng: np.random.Generator) -> Still:
    """Every attribute is drawn alone, all values equally likely."""
    colour, shape, place = pick(rng, tuple(COLOURS)), pick(rng, SHAPES), pick(rng, PLACES)
    digit, count = pick(rng, DIGITS), int(rng.integers(1, MARKS + 1))
    picture = canvas.blank()
    row, column = row_and_column(place)
    inset = (CELL - SIZE) // 2
    down, right = rng.integers(-JITTER, JITTER + 1, 2)
    top, left = row * CELL + inset + int(down), column * CELL + inset + int(right)
    canvas.draw_shape(picture, top, left, shape, SIZE, colour)
    glyph = canvas.digit_mask(digit, SIZE)
    canvas.paste(picture, CELL + inset, 3 * CELL + (CELL - glyph.shape[1]) // 2, glyph, canvas.WHITE)
    for slot in rng.permutation(MARKS)[:count]:
        left = 2 + int(slot) * SLOT + (SLOT - MARK_WIDTH) // 2
        canvas.bar(picture, 3 * CELL + (CELL - MARK_HEIGHT) // 2, left, MARK_HEIGHT, MARK_WIDTH, canvas.WHITE)
    return Still(colour, shape, place, count, digit, picture)
