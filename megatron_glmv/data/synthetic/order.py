"""In what order the colours of a lamp come."""

from __future__ import annotations

import numpy as np

from megatron_glmv.data.synthetic.cycle import CYCLED, Cycle
from megatron_glmv.data.synthetic.lights import LIGHTS, Lights
from megatron_glmv.data.synthetic.task import EASY, HARD, MEDIUM, Ask, Task, about, pick


def _ask_next(lamp: Lights | Cycle, rng: np.random.Generator) -> Ask:
    colours = CYCLED if isinstance(lamp, Cycle) else LIGHTS
    colour = pick(rng, colours)
    phrasing = pick(rng, ("what comes after {}?", "which colour is after {}?"))
    return Ask(phrasing.format(colour), lamp.after(colour), tuple(c for c in colours if c != colour))


LIGHT_FIRST: Task[Lights] = Task(
    "light_first", EASY, about(("which colour is first?", "name the first colour"), LIGHTS, "first")
)
LIGHT_LAST: Task[Lights] = Task(
    "light_last", EASY, about(("which colour is last?", "name the last colour"), LIGHTS, "last")
)
ORDER: Task[Lights] = Task("order", HARD, _ask_next)
CYCLE_FIRST: Task[Cycle] = Task(
    "cycle_first", EASY, about(("which colour is first?", "name the first colour"), CYCLED, "first")
)
CYCLE_NEXT: Task[Cycle] = Task("cycle_next", MEDIUM, _ask_next)
