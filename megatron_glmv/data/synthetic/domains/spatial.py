"""Spatial relations: where one object lies from another (tiers 0 and 1), and what lies at the end of a way through a
full grid (tiers 2 and 3). Relations and colours are drawn first, uniformly, and the places after them."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_glmv.data.synthetic.canvas import SHAPES
from megatron_glmv.data.synthetic.domains.drawing import Sheet
from megatron_glmv.data.synthetic.domains.objects import NAMES, Thing, paint, place
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium
from megatron_glmv.data.types import IMAGE

CELLS = 4
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
GRID = {2: 4, 3: 6}
MOVES = {2: (1, 2), 3: (3, 4)}


@dataclass(frozen=True)
class Scene:
    media: tuple[Medium, ...]
    things: tuple[Thing, ...]
    """The first two are related in a scene of relations."""
    relation: str = ""
    """Where the first thing lies from the second."""
    start: tuple[int, int] = (0, 0)
    """Cell of the ring."""
    moves: tuple[str, ...] = ()
    end: tuple[int, int] = (0, 0)

    def at(self, cell: tuple[int, int]) -> Thing:
        return next(thing for thing in self.things if (thing.row, thing.column) == cell)


def draw_relation(d: Draw) -> Scene:
    relation = d.pick(tuple(RELATIONS))
    down, right = RELATIONS[relation]
    distance, along, apart = d.between(1, CELLS - 1), 0, d.between(0, CELLS - 1)
    along = d.between(0, CELLS - 1 - distance)
    near, far = (along, along + distance) if down + right > 0 else (along + distance, along)
    first, second = ((far, apart), (near, apart)) if down else ((apart, far), (apart, near))
    free = [c for c in (divmod(i, CELLS) for i in range(CELLS * CELLS)) if c not in (first, second)]
    places = [first, second, *d.some(free, d.tier * d.between(1, 3))]
    pairs = d.some([(colour, shape) for colour in NAMES for shape in SHAPES], len(places))
    things = tuple(place(d, CELLS, *cell, *pair, loose=False) for cell, pair in zip(places, pairs, strict=True))
    sheet = Sheet(d.side, d.side, d.style)
    paint(sheet, things)
    return Scene((Medium(IMAGE, sheet.pixels()),), things, relation)


def _ask_relation(scene: Scene, d: Draw) -> Ask:
    """Either of the two from the other."""
    (a, b), relation = scene.things[:2], scene.relation
    if d.pick((True, False)):
        a, b, relation = b, a, OPPOSITE[relation]
    steps = [f"the {t.name} is in row {t.row + 1}, column {t.column + 1}" for t in (a, b)]
    steps.append(f"so it is {relation} it")
    phrasings = ("where is the {a} from the {b}?", "the {a} is where, seen from the {b}?")
    return d.ask(
        "spatial_relation",
        phrasings,
        relation,
        steps,
        choices=tuple(RELATIONS),
        work=len(scene.things),
        a=a.name,
        b=b.name,
    )


def draw_way(d: Draw) -> Scene:
    """A full grid with one ring; the way from it never leaves the grid and ends on an object whose colour is drawn
    alone."""
    cells = GRID[d.tier]
    while True:
        cell = start = (d.between(0, cells - 1), d.between(0, cells - 1))
        moves = tuple(d.pick(tuple(WAYS)) for _ in range(d.between(*MOVES[d.tier])))
        for move in moves:
            cell = (cell[0] + WAYS[move][0], cell[1] + WAYS[move][1])
            if not (0 <= cell[0] < cells and 0 <= cell[1] < cells):
                break
        else:
            if cell != start:
                break
    things = tuple(
        place(d, cells, row, column, d.pick(NAMES), d.pick(SHAPES), loose=False)
        for row in range(cells)
        for column in range(cells)
        if (row, column) != start
    )
    sheet = Sheet(d.side, d.side, d.style)
    paint(sheet, things)
    size = d.side / cells
    ring = (start[1] * size + 4, start[0] * size + 4, (start[1] + 1) * size - 4, (start[0] + 1) * size - 4)
    sheet.ellipse(ring, outline=d.style.ink, width=size / 10)
    return Scene((Medium(IMAGE, sheet.pixels()),), things, start=start, moves=moves, end=cell)


def _ask_way(attribute: str, scene: Scene, d: Draw) -> Ask:
    said = getattr(scene.at(scene.end), attribute)
    steps, (row, column) = [f"the ring is in row {scene.start[0] + 1}, column {scene.start[1] + 1}"], scene.start
    for move in scene.moves:
        row, column = row + WAYS[move][0], column + WAYS[move][1]
        steps.append(f"{move} is row {row + 1}, column {column + 1}")
    steps.append(f"there is a {scene.at(scene.end).name}")
    phrasings = ("from the ring go {way}: which {what} is there?", "start at the ring, move {way}, and name the {what}")
    return d.ask(
        f"spatial_{attribute}",
        phrasings,
        said,
        steps,
        choices=NAMES if attribute == "colour" else SHAPES,
        work=len(scene.things) + len(scene.moves),
        way=", ".join(scene.moves),
        what=attribute,
    )


def _ask_colour(scene: Scene, d: Draw) -> Ask:
    return _ask_way("colour", scene, d)


def _ask_shape(scene: Scene, d: Draw) -> Ask:
    return _ask_way("shape", scene, d)


SPATIAL = Domain(
    "spatial",
    (
        Kind("relation", draw_relation, (_ask_relation, _ask_relation), (0, 1)),
        Kind("way", draw_way, (_ask_colour, _ask_shape), (2, 3)),
    ),
)
