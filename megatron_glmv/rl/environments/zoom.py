"""Looking closer: a digit stands on an object, and can be read only in a magnified part of the picture.

    zoom northwest      shows that ninth of the picture at four times the size
    7                   answers, and ends the episode: reward 1 for the right digit

The overview is drawn without the digits (they would be 6 pixels high), so it says nothing of them: without a look
one in ten answers is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from megatron_glmv.data.synthetic import canvas
from megatron_glmv.data.synthetic.canvas import CELL, COLOURS, DIGITS, SHAPES, SIDE, Pixels
from megatron_glmv.data.synthetic.domains.lattice import choose
from megatron_glmv.data.synthetic.domains.problem import OPENERS
from megatron_glmv.data.synthetic.encode import PNG, encode_image
from megatron_glmv.data.synthetic.grid import PLACES, row_and_column
from megatron_glmv.data.types import Json
from megatron_glmv.rl.environments.types import Episode, InvalidAction, Observation, Start, Step

PHRASINGS = (
    "which digit is on the {}?",
    "read the digit of the {}",
    "name the digit on the {}",
    "what is the digit of the {}?",
)
SIZE = 72
"""Pixels along an object in a magnified part of SIDE x SIDE; a quarter of it in the overview."""
DIGIT = 24
NEXT = "which digit is it?"


class Zoom:
    NAME: ClassVar[str] = "zoom"
    DEFAULTS: ClassVar[Mapping[str, Any]] = {"objects": 1, "steps": 3}
    """Objects of different colours in the picture, 1 to 6; steps of an episode."""
    HELP: ClassVar[str] = "zoom PLACE or a digit"

    def reset(self, episode: Episode) -> Start:
        options = {**self.DEFAULTS, **episode.options}
        count, limit = int(options["objects"]), int(options["steps"])
        if not 1 <= count <= len(COLOURS) or limit < 1:
            raise ValueError(f"objects={count} must be 1 to {len(COLOURS)}, and steps={limit} at least 1")
        rng = episode.draws()
        places = [PLACES[i] for i in rng.permutation(len(PLACES))[:count]]
        colours = [tuple(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:count]]
        shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
        digits = [DIGITS[i] for i in rng.integers(len(DIGITS), size=count)]
        objects = {p: list(rest) for p, *rest in zip(places, colours, shapes, digits, strict=True)}
        opener, phrasing = choose(rng, episode.split, (len(OPENERS), len(PHRASINGS)))
        asked = OPENERS[opener] + PHRASINGS[phrasing].format(f"{colours[0]} {shapes[0]}")
        state: Json = {"objects": objects, "asked": places[0], "seen": []}
        return Start(state, Observation(asked, (encode_image(overview(objects), PNG),)), limit)

    def step(self, state: Json, action: str) -> Step:
        said = action.strip().casefold().rstrip(".").removeprefix("zoom ").strip()
        if said in DIGITS:
            right = said == state["objects"][state["asked"]][2]
            return Step(state, Observation("right" if right else "wrong"), float(right), done=True)
        if said not in PLACES:
            raise InvalidAction("neither a place nor a digit")
        part = encode_image(magnified(state["objects"].get(said)), PNG)
        return Step({**state, "seen": [*state["seen"], said]}, Observation(NEXT, (part,)))

    def expert(self, state: Json) -> str:
        asked: str = state["asked"]
        return str(state["objects"][asked][2]) if asked in state["seen"] else f"zoom {asked}"

    def other(self, state: Json, rng: np.random.Generator) -> str:
        if state["asked"] in state["seen"]:
            digits = [digit for digit in DIGITS if digit != state["objects"][state["asked"]][2]]
            return digits[int(rng.integers(len(digits)))]
        places = [place for place in PLACES if place != state["asked"]]
        return f"zoom {places[int(rng.integers(len(places)))]}"


def overview(objects: Mapping[str, list[str]]) -> Pixels:
    """[SIDE, SIDE, 3]: every object in its cell, without its digit."""
    picture = canvas.blank()
    for place, (colour, shape, _) in objects.items():
        row, column = row_and_column(place)
        small = magnified([colour, shape, ""])
        part = np.asarray(Image.fromarray(small).resize((CELL, CELL), Image.Resampling.BOX))
        picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = part
    return picture


def magnified(thing: list[str] | None) -> Pixels:
    """[SIDE, SIDE, 3]: a cell and what is in it, colour, shape and digit."""
    picture = canvas.blank()
    if thing is not None:
        colour, shape, digit = thing
        canvas.draw_shape(picture, (SIDE - SIZE) // 2, (3 * CELL - SIZE) // 2, shape, SIZE, colour)
        if digit:
            glyph = canvas.digit_mask(digit, DIGIT)
            top, left = CELL + (CELL - DIGIT) // 2, 3 * CELL + (CELL - glyph.shape[1]) // 2
            canvas.paste(picture, top, left, glyph, canvas.WHITE)
    return picture
