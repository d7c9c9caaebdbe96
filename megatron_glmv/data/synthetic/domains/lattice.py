"""Templates, and which of them are kept from training.

A template is a tuple of parts, such as (opener, phrasing) of a question or (font, theme) of a picture. A tuple whose
indices sum to HELD_OUT modulo MODULUS belongs to held-out data and to nothing else: a whole template is never shared
between training and held-out data, while training sees each of its parts (a font is known, but not in this theme).
Validation data (`val`) has training's templates with seeds of its own.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np

from megatron_glmv.data.synthetic.seeds import EVAL

MODULUS, HELD_OUT = 4, 3

Template = tuple[int, ...]


def is_held_out(template: Template) -> bool:
    return sum(template) % MODULUS == HELD_OUT


@lru_cache
def templates(held_out: bool, sizes: tuple[int, ...]) -> tuple[Template, ...]:
    """The templates of one side, from `sizes[i]` kinds of part i. Raises ValueError where held-out data would have none
    or training would miss a part."""
    found = tuple(t for t in product(*map(range, sizes)) if is_held_out(t) == held_out)
    missing = any({t[part] for t in found} != set(range(size)) for part, size in enumerate(sizes))
    if not found or (missing and not held_out):
        raise ValueError(f"sizes {sizes} are too few to share; give one part at least {MODULUS} kinds")
    return found


def choose(rng: np.random.Generator, split: str, sizes: tuple[int, ...]) -> Template:
    """One template of the split, all equally likely."""
    found = templates(split == EVAL, sizes)
    return found[int(rng.integers(len(found)))]
