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
from megatron_glmv.data.synthetic.grid import DIRECTIONS, PLACES
from megatron_glmv.data.synthetic.task import pick

FRAMES = 4
STEP = 14
"""Pixels between two frames: one patch."""
SIZE = 28
OFFSET = 0
ZONES = 2


@dataclass(frozen=True)
class Clip:
    colour: str
    shape: str
    direction: str
    start: str
    end: str
    pixels: Pixels
    """[F, SIDE, SIDE, 3]."""


def draw(rng: np.random.Generator) -> Clip:
    """Every attribute is drawn alone, all values equally likely."""
    colour, shape, direction = pick(rng, tuple(COLOURS)), pick(rng, SHAPES), pick(rng, tuple(DIRECTIONS))
    background = canvas.blank()
    start = rng.integers(SIDE // STEP, size=2) * STEP + OFFSET
    places, frames = [], []
    for moved in range(FRAMES):
        top, left = (int(at) + moved * STEP * step for at, step in zip(start, DIRECTIONS[direction], strict=True))
        frame = background.copy()
        canvas.draw_shape(frame, top, left, shape, SIZE, colour)
        frames.append(frame)
        row, column = ((at + SIZE // 2) % SIDE * ZONES // SIDE for at in (top, left))
        places.append(PLACES[(row * 3 + column) if ZONES == 3 else (row * 6 + column * 2)])
    return Clip(colour, shape, direction, places[0], places[-1], np.stack(frames))
