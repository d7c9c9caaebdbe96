"""Text only: a few colours are listed, and one is asked for by its place in the list."""

from __future__ import annotations

import numpy as np

from megatron_glmv.data.synthetic.canvas import COLOURS
from megatron_glmv.data.synthetic.task import MEDIUM, Ask, Task

PLACES = ("first", "last")
LISTED = 3


def _ask(_: None, rng: np.random.Generator) -> Ask:
    listed = [str(name) for name in rng.permutation(list(COLOURS))[:LISTED]]
    place = int(rng.integers(len(PLACES)))
    return Ask(f"{' '.join(listed)}: which is the {PLACES[place]}?", listed[-place], tuple(COLOURS))


RECALL: Task[None] = Task("recall", MEDIUM, _ask)
