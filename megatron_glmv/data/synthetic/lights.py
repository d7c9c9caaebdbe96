"""A video of one lamp that shows four colours, one a frame, each once.

No single frame can tell what follows a colour. The order of the four colours is a uniformly drawn permutation, and the
clip is said to repeat, so that the last colour is followed by the first. Ask what follows colour X. If frame t shows
X, the follower is any of the other three, equally likely. If it shows Y instead, then by symmetry over the cyclic
shifts of the order Y follows X in one of three cases, as do the other two. So given any one frame, every answer has
probability 1/3, as without it. ("Which colour comes first" cannot be asked this way: the earliest frame that shows a
colour answers it.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_glmv.data.synthetic import canvas
from megatron_glmv.data.synthetic.canvas import COLOURS, SIDE, Pixels

LAMP = 84
"""Pixels along one side."""
LIGHTS = tuple(COLOURS)[:4]
FRAMES = len(LIGHTS)


@dataclass(frozen=True)
class Lights:
    order: tuple[str, ...]
    """The colours in order of time."""
    pixels: Pixels
    """[F, SIDE, SIDE, 3]."""

    @property
    def first(self) -> str:
        return self.order[0]

    @property
    def last(self) -> str:
        return self.order[-1]

    def after(self, colour: str) -> str:
        """The colour that follows, the clip repeating."""
        return self.order[(self.order.index(colour) + 1) % len(self.order)]


def draw(rng: np.random.Generator) -> Lights:
    order = tuple(str(colour) for colour in rng.permutation(LIGHTS))
    background, mask, corner = canvas.blank(), canvas.shape_mask("circle", LAMP), (SIDE - LAMP) // 2
    frames = []
    for colour in order:
        frame = background.copy()
        canvas.paste(frame, corner, corner, mask, COLOURS[colour])
        frames.append(frame)
    return Lights(order, np.stack(frames))
