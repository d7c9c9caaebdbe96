"""A video of one object that slides over the picture and re-enters on the other side.

No single frame can tell the direction. Say the position at frame 0 is uniform over a set P of positions, that direction
d moves it by t steps of a permutation of P until frame t, and that colour, shape and background are drawn alone. Then
for every d and t the position at frame t is uniform over P again, so what one frame shows has the same distribution
under every direction. P is the lattice of STEP pixels on the torus of SIDE pixels, which a step maps onto itself. The
wrap is needed: where E[column at t] is the same under `right` and `left` at every t, net motion is possible on a torus
only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_glmv.data.synthetic import canvas
from megatron_glmv.data.synthetic.canvas import COLOURS, SHAPES, SIDE, Pixels
from megatron_glmv.data.synthetic.grid import CORNERS, DIRECTIONS
from megatron_glmv.data.synthetic.task import pick

FRAMES = 4
STEP = 14
"""Pixels between two frames: one patch."""
SIZE = 28
"""Pixels along one side of the object. Its middle lies in one quarter of the picture, each equally often."""


@dataclass(frozen=True)
class Clip:
    colour: str
    shape: str
    direction: str
    start: str
    end: str
    """The quarter of the picture in the first and in the last frame."""
    pixels: Pixels
    """[F, SIDE, SIDE, 3]."""


def draw(rng: np.random.Generator) -> Clip:
    """Every attribute is drawn alone, all values equally likely."""
    colour, shape, direction = pick(rng, tuple(COLOURS)), pick(rng, SHAPES), pick(rng, tuple(DIRECTIONS))
    row, column = (int(at) for at in rng.integers(SIDE // STEP, size=2) * STEP)
    return film(colour, shape, direction, row, column)


def film(colour: str, shape: str, direction: str, row: int, column: int) -> Clip:
    """The clip whose object has its upper left corner at pixel (row, column) of the first frame."""
    places, frames = [], []
    for moved in range(FRAMES):
        top, left = (at + moved * STEP * step for at, step in zip((row, column), DIRECTIONS[direction], strict=True))
        frame = canvas.blank()
        canvas.draw_shape(frame, top, left, shape, SIZE, colour)
        frames.append(frame)
        down, right = ((at + SIZE // 2) % SIDE * 2 // SIDE for at in (top, left))
        places.append(CORNERS[down * 2 + right])
    return Clip(colour, shape, direction, places[0], places[-1], np.stack(frames))
