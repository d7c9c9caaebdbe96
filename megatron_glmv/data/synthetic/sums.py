"""Text only: sums of two numbers, every result from 0 to 9 equally often."""

from __future__ import annotations

import numpy as np

from megatron_glmv.data.synthetic.canvas import DIGITS
from megatron_glmv.data.synthetic.task import HARD, Ask, Task


def _ask(_: None, rng: np.random.Generator) -> Ask:
    total = int(rng.integers(len(DIGITS)))
    first = int(rng.integers(total + 1))
    return Ask(f"what is {first} + {total - first}?", str(total), DIGITS)


SUMS: Task[None] = Task("sum", HARD, _ask)
