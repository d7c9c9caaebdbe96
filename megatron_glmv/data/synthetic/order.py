"""In what order the colours of a lamp come."""

from __future__ import annotations

import numpy as np

from megatron_glmv.data.synthetic.lights import LIGHTS, Lights
from megatron_glmv.data.synthetic.task import EASY, HARD, Ask, Task, about, pick


def _ask_next(lights: Lights, rng: np.random.Generator) -> Ask:
    colour = pick(rng, LIGHTS)
    phrasing = pick(rng, ("what is next to {}?", "which colour is next to {}?"))
    return Ask(phrasing.format(colour), lights.after(colour), tuple(c for c in LIGHTS if c != colour))


LIGHT_FIRST: Task[Lights] = Task(
    "light_first", EASY, about(("which colour is first?", "name the first colour"), LIGHTS, "first")
)
LIGHT_LAST: Task[Lights] = Task(
    "light_last", EASY, about(("which colour is last?", "name the last colour"), LIGHTS, "last")
)
ORDER: Task[Lights] = Task("order", HARD, _ask_next)
