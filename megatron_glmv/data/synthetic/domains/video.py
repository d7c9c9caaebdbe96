"""Short videos: which way an object moves, how often a lamp lights, and in what order its colours come.

Motion is on a torus: the object re-enters on the other side, so that where it is in one frame says nothing about the
direction (the argument is in `synthetic/clip.py`; here the lattice has one cell for each frame). A lamp is on in some
of the frames, never in two neighbours, and the number of flashes is drawn first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from megatron_glmv.data.synthetic.canvas import COLOURS, SHAPES
from megatron_glmv.data.synthetic.domains.drawing import Sheet
from megatron_glmv.data.synthetic.domains.objects import NAMES
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium
from megatron_glmv.data.types import VIDEO

FRAMES = (4, 6, 10, 16)
SIDES = (112, 112, 112, 224)
FLASHES = (2, 3, 4, 6)
"""Most flashes, by tier; half the frames hold them apart."""
LATTICE = 8
WAYS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
DIAGONALS = {"up right": (-1, 1), "up left": (-1, -1), "down right": (1, 1), "down left": (1, -1)}
MOVERS = (1, 1, 2, 3)
COLOURS_SHOWN = (3, 3, 4, 6)


@dataclass(frozen=True)
class Film:
    media: tuple[Medium, ...]
    movers: tuple[tuple[str, str, str], ...] = ()
    """(colour, shape, way) of each moving object."""
    flashes: int = 0
    colour: str = ""
    order: tuple[str, ...] = field(default=())
    """Colours in order of time."""


def _medium(sheets: list[Sheet]) -> tuple[Medium, ...]:
    return (Medium(VIDEO, np.stack([sheet.pixels() for sheet in sheets])),)


def ways(tier: int) -> dict[str, tuple[int, int]]:
    return WAYS if tier < 2 else WAYS | DIAGONALS


def draw_motion(d: Draw) -> Film:
    """Objects of different colours, each on a lattice of 8 x 8 places, one step a frame; what leaves one side enters
    opposite. They pass each other; the one that is asked for is painted last."""
    side = SIDES[d.tier] * d.scale
    step, size = side // LATTICE, side // LATTICE * 2
    colours = d.some(NAMES, MOVERS[d.tier])
    movers = tuple((colour, d.pick(SHAPES), d.pick(tuple(ways(d.tier)))) for colour in colours)
    starts = [(d.between(0, LATTICE - 1), d.between(0, LATTICE - 1)) for _ in movers]
    sheets = []
    for frame in range(FRAMES[d.tier]):
        sheet = Sheet(side, side, d.style)
        for (colour, shape, way), (row, column) in reversed(list(zip(movers, starts, strict=True))):
            down, right = ways(d.tier)[way]
            top = (row + down * frame) % LATTICE * step
            left = (column + right * frame) % LATTICE * step
            for y in (top, top - side):
                for x in (left, left - side):
                    if x + size > 0 and y + size > 0:
                        sheet.shape(shape, (x, y, x + size, y + size), colour)
        sheets.append(sheet)
    return Film(_medium(sheets), movers)


def ask_direction(film: Film, d: Draw) -> Ask:
    colour, shape, way = film.movers[0]
    down, right = ways(d.tier)[way]
    told = {(0, 1): "the column grows", (0, -1): "the column falls", (1, 0): "the row grows", (-1, 0): "the row falls"}
    steps = [told[part] for part in ((down, 0), (0, right)) if part in told] + [f"the {colour} {shape} moves {way}"]
    phrasings = ("which way does the {what} move?", "where is the {what} going?", "name the direction of the {what}")
    work = FRAMES[d.tier] * len(film.movers)
    return d.ask(
        "video_direction", phrasings, way, steps, choices=tuple(ways(d.tier)), work=work, what=f"{colour} {shape}"
    )


def draw_flashes(d: Draw) -> Film:
    side, frames = SIDES[d.tier] * d.scale, FRAMES[d.tier]
    count, colour = d.between(1, FLASHES[d.tier]), d.pick(NAMES)
    gaps = d.some(range(frames - count + 1), count)  # never two neighbours
    lit = {place + number for number, place in enumerate(sorted(gaps))}
    sheets = []
    for frame in range(frames):
        sheet = Sheet(side, side, d.style)
        lamp = (side * 0.25, side * 0.25, side * 0.75, side * 0.75)
        sheet.ellipse(lamp, COLOURS[colour] if frame in lit else None, d.style.ink, side / 56)
        sheets.append(sheet)
    return Film(_medium(sheets), flashes=count, colour=colour)


def ask_flashes(film: Film, d: Draw) -> Ask:
    steps = [f"flash {number}" for number in range(1, film.flashes + 1)]
    phrasings = ("how many times does the lamp light up?", "count the flashes", "how many flashes are there?")
    return d.ask(
        "video_count",
        phrasings,
        film.flashes,
        steps,
        choices=range(1, FLASHES[d.tier] + 1),
        work=FRAMES[d.tier] + film.flashes,
    )


def draw_order(d: Draw) -> Film:
    """Every colour stands for a while of its own; a tier has one to three frames for each."""
    side, shown = SIDES[d.tier] * d.scale, COLOURS_SHOWN[d.tier]
    order = tuple(d.some(NAMES, shown))
    ends = sorted(d.some(range(1, FRAMES[d.tier]), shown - 1))
    sheets = []
    for frame in range(FRAMES[d.tier]):
        sheet = Sheet(side, side, d.style)
        colour = order[sum(frame >= end for end in ends)]
        inset = side / 8
        sheet.shape("circle", (inset, inset, side - inset, side - inset), colour)
        sheets.append(sheet)
    return Film(_medium(sheets), order=order)


def ask_next(film: Film, d: Draw) -> Ask:
    at = d.between(1, len(film.order) - 1)
    before, said = film.order[at - 1], film.order[at]
    steps = ["the order is " + ", ".join(film.order[: at + 1]), f"after {before} comes {said}"]
    phrasings = ("which colour comes right after {before}?", "what follows {before}?", "name the colour after {before}")
    others = tuple(name for name in NAMES if name != before)
    return d.ask(
        "video_order", phrasings, said, steps, choices=others, work=FRAMES[d.tier] + len(film.order), before=before
    )


def ask_end(film: Film, d: Draw) -> Ask:
    which = d.pick(("first", "last"))
    said = film.order[0] if which == "first" else film.order[-1]
    steps = ["the order is " + ", ".join(film.order), f"the {which} is {said}"]
    phrasings = ("which colour is {which}?", "name the {which} colour", "what is the {which} colour?")
    return d.ask("video_end", phrasings, said, steps, choices=NAMES, work=FRAMES[d.tier] + len(film.order), which=which)


VIDEO_DOMAIN = Domain(
    "video",
    (
        Kind("motion", draw_motion, (ask_direction,)),
        Kind("flashes", draw_flashes, (ask_flashes,)),
        Kind("order", draw_order, (ask_next, ask_end)),
    ),
)
