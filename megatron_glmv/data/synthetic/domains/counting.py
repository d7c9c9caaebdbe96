"""Counting: how many objects there are, of a colour, of a colour and shape, and not of a colour.

The number is drawn first, uniformly and independently of how many other objects lie around.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from megatron_glmv.data.synthetic.canvas import SHAPES
from megatron_glmv.data.synthetic.domains.drawing import Sheet
from megatron_glmv.data.synthetic.domains.objects import NAMES, Thing, paint, place
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium
from megatron_glmv.data.types import IMAGE

CELLS = (4, 4, 6, 8)
MOST = (6, 6, 8, 12)
"""Largest number to count, by tier."""
OTHERS = ((0, 0), (2, 6), (6, 14), (16, 30))
"""Objects that are not to be counted: from, to."""


@dataclass(frozen=True)
class Scene:
    media: tuple[Medium, ...]
    things: tuple[Thing, ...]
    colour: str
    """Asked for; empty: all objects are."""
    shape: str
    """Asked for; empty: any shape counts."""

    def counted(self) -> tuple[Thing, ...]:
        return tuple(t for t in self.things if self.colour in ("", t.colour) and self.shape in ("", t.shape))


def draw(d: Draw) -> Scene:
    cells, count = CELLS[d.tier], d.between(1, MOST[d.tier])
    colour, shape = d.pick(NAMES), d.pick(SHAPES)
    wanted = [(colour, shape if d.tier in (0, 2) else d.pick(SHAPES)) for _ in range(count)]
    for _ in range(d.between(*OTHERS[d.tier])):
        near = d.tier == 2 and d.pick((True, False))  # one of the two attributes is shared
        other = colour if near else d.pick([name for name in NAMES if name != colour])
        wanted.append((other, d.pick([s for s in SHAPES if s != shape]) if near else d.pick(SHAPES)))
    places = d.some([divmod(i, cells) for i in range(cells * cells)], len(wanted))
    things = tuple(
        place(d, cells, row, column, *which, loose=d.tier > 1)
        for (row, column), which in zip(places, wanted, strict=True)
    )
    sheet = Sheet(d.side, d.side, d.style)
    paint(sheet, things)
    return Scene((Medium(IMAGE, sheet.pixels()),), things, colour if d.tier else "", shape if d.tier == 2 else "")


def _ask(scene: Scene, d: Draw) -> Ask:
    counted = scene.counted()
    if not scene.colour:
        what, phrasings = "objects", ("how many {what} are there?", "count the {what}", "give the number of {what}")
    else:
        what = f"{scene.colour} {scene.shape + 's' if scene.shape else 'objects'}".replace("crosss", "crosses")
        phrasings = ("how many {what} are there?", "count the {what}", "give the number of {what}")
    rows = sorted(Counter(thing.row + 1 for thing in counted).items())
    steps = [f"row {row} has {number}" for row, number in rows]
    if len(rows) > 1:
        steps.append(f"{' + '.join(str(number) for _, number in rows)} = {len(counted)}")
    choices = range(1, MOST[d.tier] + 1)
    work = len(scene.things) + bool(scene.colour) + bool(scene.shape)
    return d.ask("counting_objects", phrasings, len(counted), steps, choices=choices, work=work, what=what)


COUNTING = Domain("counting", (Kind("objects", draw, (_ask,)),))
