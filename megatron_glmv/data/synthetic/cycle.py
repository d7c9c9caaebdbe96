"""A video of one lamp that goes through three colours again and again, one a frame.

No single frame can tell what follows a colour. The three colours follow one another in one of two ways round, and the
clip begins with any of them: six clips, all equally likely. Whatever frame is shown, its colour
leaves one clip for each way round, so that of the two answers to "what comes after X" each is right in one of the two.
`lights` asks the same of four colours that come once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from megatron_glmv.data.synthetic import canvas
from megatron_glmv.data.synthetic.canvas import COLOURS, SIDE, Pixels
from megatron_glmv.data.synthetic.lights import FRAMES, LAMP
from megatron_glmv.data.synthetic.task import pick

CYCLED = tuple(COLOURS)[:3]
ORDERS = tuple(permutations(CYCLED))


@dataclass(frozen=True)
class Cycle:
    order: tuple[str, ...]
    """The colours of the first frames in order of time; then they begin again."""
    pixels: Pixels
    """[F, SIDE, SIDE, 3]."""

    @property
    def first(self) -> str:
        return self.order[0]

    def after(self, colour: str) -> str:
        """The colour that follows."""
        return self.order[(self.order.index(colour) + 1) % len(self.order)]


def draw(rng: np.random.Generator) -> Cycle:
    return film(pick(rng, ORDERS))


def film(order: tuple[str, ...]) -> Cycle:
    """The clip whose lamp shows the colours of `order`, repeated."""
    mask, corner = canvas.shape_mask("circle", LAMP), (SIDE - LAMP) // 2
    frames = [canvas.blank() for _ in range(FRAMES)]
    for number, frame in enumerate(frames):
        canvas.paste(frame, corner, corner, mask, COLOURS[order[number % len(order)]])
    return Cycle(order, np.stack(frames))
