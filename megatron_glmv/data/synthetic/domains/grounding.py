"""Grounding: the box of one object, or the boxes of all objects of a colour, in thousandths of the picture (0 .. 999).

Chance is what the best box given without looking scores at an IoU of 0.5; boxes of two cells never overlap by that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from megatron_glmv.data.synthetic.canvas import SHAPES
from megatron_glmv.data.synthetic.domains.drawing import Sheet
from megatron_glmv.data.synthetic.domains.objects import NAMES, Thing, any_pair, coordinates, paint, place
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium
from megatron_glmv.data.types import IMAGE

CELLS = (4, 4, 4, 6)
THINGS = ((1, 1), (3, 5), (5, 8), (14, 20))
CHANCE = (1 / 16, 1 / 16, 1 / 16, 1 / 36)


@dataclass(frozen=True)
class Scene:
    media: tuple[Medium, ...]
    things: tuple[Thing, ...]
    colour: str
    """Asked for at tier 3, where several may have it; below, the first thing is asked for."""
    side: int

    def boxes(self) -> list[list[int]]:
        """Those of the answer, from left to right."""
        asked = [thing for thing in self.things if thing.colour == self.colour] if self.colour else [self.things[0]]
        return sorted(coordinates(thing.at, self.side, self.side) for thing in asked)


def draw(d: Draw) -> Scene:
    cells, count = CELLS[d.tier], d.between(*THINGS[d.tier])
    places = d.some([divmod(i, cells) for i in range(cells * cells)], count)
    colour = ""
    if d.tier == 3:
        colour, several = d.pick(NAMES), d.between(1, 3)
        others = [name for name in NAMES if name != colour]
        pairs = [(colour if i < several else d.pick(others), d.pick(SHAPES)) for i in range(count)]
    elif d.tier:
        pairs = d.some([(name, shape) for name in NAMES for shape in SHAPES], count)
    else:
        pairs = [any_pair(d)]
    things = tuple(place(d, cells, *cell, *pair, loose=d.tier > 1) for cell, pair in zip(places, pairs, strict=True))
    sheet = Sheet(d.side, d.side, d.style)
    paint(sheet, things)
    return Scene((Medium(IMAGE, sheet.pixels()),), things, colour, d.side)


def _ask(scene: Scene, d: Draw) -> Ask:
    boxes = scene.boxes()
    several = bool(scene.colour)
    what = f"{scene.colour} objects" if several else scene.things[0].name
    steps = [f"the {what} span x {x1} to {x2} and y {y1} to {y2}" for x1, y1, x2, y2 in boxes]
    if not several:
        steps = [step.replace(" span ", " spans ") for step in steps]
    phrasings = (
        ("give the boxes of all {what}", "find every box of the {what}", "where are the {what}? give all boxes")
        if several
        else ("where is the {what}? give its box", "give the box of the {what}", "find the {what}")
    )
    answer = json.dumps(boxes if several else boxes[0], separators=(",", ":"))
    work = len(scene.things) + 4 * len(boxes)
    return d.ask(
        "grounding_boxes" if several else "grounding_box",
        phrasings,
        answer,
        steps,
        chance=CHANCE[d.tier],
        work=work,
        what=what,
    )


GROUNDING = Domain("grounding", (Kind("objects", draw, (_ask,)),))
