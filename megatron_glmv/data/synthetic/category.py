"""Text only: what kind of thing a word names."""

from __future__ import annotations

import numpy as np

from megatron_glmv.data.synthetic.canvas import COLOURS, DIGITS, SHAPES
from megatron_glmv.data.synthetic.grid import DIRECTIONS
from megatron_glmv.data.synthetic.task import EASY, Ask, Task, pick

KINDS = {"colour": tuple(COLOURS), "shape": SHAPES, "digit": DIGITS, "way": tuple(DIRECTIONS)}


def _ask(_: None, rng: np.random.Generator) -> Ask:
    kind = pick(rng, tuple(KINDS))
    return Ask(f"what is {pick(rng, KINDS[kind])}?", kind, tuple(KINDS))


CATEGORY: Task[None] = Task("category", EASY, _ask)
