"""STEM from a diagram: sums of drawn numbers, areas, angles and sides of labelled figures.

The answer is drawn first, uniformly from a list, and a figure that has it afterwards; figures are not to scale, as in a
school book, so that labels have to be read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_glmv.data.synthetic.domains.drawing import Sheet
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium
from megatron_glmv.data.types import IMAGE

TERMS = (2, 3, 4, 6)
MOST = (9, 19, 29, 49)
SQUARES_AREAS = (1, 2, 3, 4, 6, 8, 9, 12)
"""Areas of rectangles of at most 4 x 4 squares."""
AREAS = (6, 8, 10, 12, 15, 18, 20, 24)
NOTCHED = tuple(range(20, 40))
ANGLES = {1: tuple(range(30, 110, 10)), 2: tuple(range(30, 110, 5)), 3: tuple(range(100, 150, 2))}
TRIPLES = {5: (3, 4), 10: (6, 8), 13: (5, 12), 17: (8, 15), 15: (9, 12), 25: (7, 24), 26: (10, 24), 29: (20, 21)}


@dataclass(frozen=True)
class Figure:
    media: tuple[Medium, ...]
    kind: str
    labels: tuple[int, ...]
    """Numbers in the figure, in the order that its kind gives them."""
    answer: int


def _figure(sheet: Sheet, kind: str, labels: tuple[int, ...], answer: int) -> Figure:
    return Figure((Medium(IMAGE, sheet.pixels()),), kind, labels, answer)


def draw_tags(d: Draw) -> Figure:
    """Numbers in circles; at the highest tier half of them in squares, which are not asked for."""
    total, terms = d.between(0, MOST[d.tier]), TERMS[d.tier]
    cuts = sorted(d.between(0, total) for _ in range(terms - 1))
    numbers = tuple(b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True))
    others = tuple(d.between(0, 9) for _ in range(terms)) if d.tier == 3 else ()
    cells = 2 if d.tier < 2 else 4
    size, sheet = d.side / cells, Sheet(d.side, d.side, d.style)
    places = d.some([divmod(i, cells) for i in range(cells * cells)], len(numbers) + len(others))
    for number, (row, column) in zip(numbers + others, places, strict=True):
        centre = ((column + 0.5) * size, (row + 0.5) * size)
        frame = (column * size + size * 0.1, row * size + size * 0.1, (column + 0.9) * size, (row + 0.9) * size)
        outline = sheet.box if others and (row, column) in places[len(numbers) :] else sheet.ellipse
        outline(frame, outline=d.style.ink, width=d.side / 80)
        sheet.text(centre, str(number), size * 0.45)
    return _figure(sheet, "tags", numbers, total)


def ask_sum(figure: Figure, d: Draw) -> Ask:
    steps, total = [f"the numbers are {', '.join(map(str, figure.labels))}"], figure.labels[0]
    for term in figure.labels[1:]:
        steps.append(f"{total} + {term} = {total + term}")
        total += term
    phrasings = ("what is the sum of the numbers in circles?", "add up the numbers in the circles")
    shown = len(figure.labels) * (2 if d.tier == 3 else 1)
    return d.ask("math_sum", phrasings, total, steps, choices=range(MOST[d.tier] + 1), work=2 * shown)


def draw_squares(d: Draw) -> Figure:
    """A rectangle of unit squares, to be counted."""
    area = d.pick(SQUARES_AREAS)
    width, height = d.pick([(w, area // w) for w in range(1, 5) if area % w == 0 and area // w <= 4])
    left, top = d.between(0, 4 - width), d.between(0, 4 - height)
    cell, sheet = d.side / 4, Sheet(d.side, d.side, d.style)
    for row in range(top, top + height):
        for column in range(left, left + width):
            at = (column * cell + 1, row * cell + 1, (column + 1) * cell - 1, (row + 1) * cell - 1)
            sheet.box(at, outline=d.style.ink, width=d.side / 40)
    return _figure(sheet, "squares", (width, height), area)


def draw_rectangle(d: Draw) -> Figure:
    """Two labelled sides; at tier 2 of a right triangle, at tier 3 a rectangle with a piece cut out of a corner."""
    sheet, s = Sheet(d.side, d.side, d.style), float(d.side)
    if d.tier < 3:
        area = d.pick(AREAS)
        width, height = d.pick([(w, area // w) for w in range(2, 11) if area % w == 0 and 2 <= area // w <= 10])
        corners = [(s * 0.12, s * 0.15), (s * 0.7, s * 0.15), (s * 0.7, s * 0.75), (s * 0.12, s * 0.75)]
        if d.tier == 2:
            width *= 2
            corners.pop(1)
        sheet.polygon(corners, outline=d.style.ink)
        sheet.text((s * 0.41, s * 0.87), str(width), s * 0.17)
        sheet.text((s * (0.84 if d.tier < 2 else 0.06), s * 0.45), str(height), s * (0.17 if d.tier < 2 else 0.1))
        return _figure(sheet, "triangle" if d.tier == 2 else "rectangle", (width, height), area)
    area = d.pick(NOTCHED)
    found = [
        (w, h, a, b)
        for w in range(5, 10)
        for h in range(4, 9)
        for a in range(1, w - 1)
        for b in range(1, h - 1)
        if w * h - a * b == area
    ]
    w, h, a, b = d.pick(found)
    x0, y0, x1, y1, xm, ym = s * 0.15, s * 0.15, s * 0.85, s * 0.85, s * 0.55, s * 0.5
    sheet.polygon([(x0, y0), (xm, y0), (xm, ym), (x1, ym), (x1, y1), (x0, y1)], outline=d.style.ink)
    sheet.text(((x0 + x1) / 2, s * 0.92), str(w), s * 0.08)
    sheet.text((s * 0.07, (y0 + y1) / 2), str(h), s * 0.08)
    sheet.text(((xm + x1) / 2, ym - s * 0.06), str(a), s * 0.08)
    sheet.text((xm + s * 0.06, (y0 + ym) / 2), str(b), s * 0.08)
    return _figure(sheet, "notched", (w, h, a, b), area)


def ask_area(figure: Figure, d: Draw) -> Ask:
    w, h = figure.labels[:2]
    if figure.kind == "squares":
        steps = [f"{h} rows of {w} squares", f"{h} x {w} = {h * w}"]
    elif figure.kind == "triangle":
        steps = [f"{w} x {h} = {w * h}", f"half of {w * h} is {figure.answer}"]
    elif figure.kind == "notched":
        a, b = figure.labels[2:]
        steps = [
            f"the whole is {w} x {h} = {w * h}",
            f"cut out is {a} x {b} = {a * b}",
            f"{w * h} - {a * b} = {figure.answer}",
        ]
    else:
        steps = [f"{w} x {h} = {w * h}"]
    choices = {"squares": SQUARES_AREAS, "notched": NOTCHED}.get(figure.kind, AREAS)
    phrasings = ("what is the area of the figure?", "how large is the area?", "give the area of the figure")
    if figure.kind == "squares":
        phrasings = ("how many small squares are there?", "count the small squares", "how many squares is the area?")
    work = (figure.answer // 3 + 2) if figure.kind == "squares" else 4 + 3 * len(steps) + len(figure.labels)
    return d.ask("math_area", phrasings, figure.answer, steps, choices=choices, work=work)


def draw_triangle(d: Draw) -> Figure:
    """Two labelled angles; at tier 3 the angle outside the third corner is asked for."""
    answer = d.pick(ANGLES[d.tier])
    rest = answer if d.tier == 3 else 180 - answer
    step = {1: 10, 2: 5, 3: 2}[d.tier]
    first = d.between(2, rest // step - 2) * step
    sheet, s = Sheet(d.side, d.side, d.style), float(d.side)
    corners = [(s * 0.08, s * 0.82), (s * 0.8, s * 0.82), (s * 0.5, s * 0.12)]
    sheet.polygon(corners, outline=d.style.ink)
    size = s * (0.13 if d.tier == 1 else 0.08)
    sheet.text((s * 0.27, s * 0.73), f"{first}°", size)
    sheet.text((s * 0.5, s * 0.36), f"{rest - first}°", size)
    if d.tier == 3:
        sheet.line([corners[1], (s * 0.98, s * 0.82)], width=2)
        sheet.text((s * 0.85, s * 0.74), "?", size)
    else:
        sheet.text((s * 0.65, s * 0.73), "?", size)
    return _figure(sheet, "outer" if d.tier == 3 else "inner", (first, rest - first), answer)


def ask_angle(figure: Figure, d: Draw) -> Ask:
    a, b = figure.labels
    steps = [f"{a} + {b} = {a + b}"]
    steps += (
        ["an outer angle is the sum of the far two"] if figure.kind == "outer" else [f"180 - {a + b} = {figure.answer}"]
    )
    phrasings = ("how many degrees has the angle ?", "find the angle marked ?", "what is the angle ? in degrees")
    work = 4 + 3 * d.tier + len(steps)
    return d.ask("math_angle", phrasings, figure.answer, steps, choices=ANGLES[d.tier], work=work)


def draw_right_triangle(d: Draw) -> Figure:
    """A right triangle with two labelled sides: the legs, or at tier 3 a leg and the longest side."""
    longest = d.pick(tuple(TRIPLES))
    a, b = TRIPLES[longest] if d.pick((True, False)) else TRIPLES[longest][::-1]
    sheet, s = Sheet(d.side, d.side, d.style), float(d.side)
    corners = [(s * 0.15, s * 0.15), (s * 0.85, s * 0.8), (s * 0.15, s * 0.8)]
    sheet.polygon(corners, outline=d.style.ink)
    sheet.box((s * 0.15, s * 0.74, s * 0.21, s * 0.8), outline=d.style.ink)
    sheet.text((s * 0.07, s * 0.48), str(a), s * 0.09)
    sheet.text((s * 0.5, s * 0.89), "?" if d.tier == 3 else str(b), s * 0.09)
    sheet.text((s * 0.6, s * 0.4), str(longest) if d.tier == 3 else "?", s * 0.09)
    return _figure(
        sheet, "leg" if d.tier == 3 else "longest", (a, longest if d.tier == 3 else b), b if d.tier == 3 else longest
    )


def ask_side(figure: Figure, d: Draw) -> Ask:
    a, b = figure.labels
    sign, square = ("-", b * b - a * a) if figure.kind == "leg" else ("+", a * a + b * b)
    first, second = (b, a) if sign == "-" else (a, b)
    steps = [
        f"{a} x {a} = {a * a}, {b} x {b} = {b * b}",
        f"{first * first} {sign} {second * second} = {square}",
        f"the side is {round(np.sqrt(square))}",
    ]
    phrasings = ("how long is the side marked ?", "find the side marked ?", "what is the length of the side ?")
    legs = [leg for pair in TRIPLES.values() for leg in pair]
    if figure.kind == "leg":
        chance = max(legs.count(leg) for leg in legs) / len(legs)
        return d.ask("math_side", phrasings, figure.answer, steps, chance=chance, work=16)
    return d.ask("math_side", phrasings, figure.answer, steps, choices=tuple(TRIPLES), work=12)


MATH = Domain(
    "math",
    (
        Kind("tags", draw_tags, (ask_sum,)),
        Kind("squares", draw_squares, (ask_area,), (0,)),
        Kind("sides", draw_rectangle, (ask_area,), (1, 2, 3)),
        Kind("angles", draw_triangle, (ask_angle,), (1, 2, 3)),
        Kind("right", draw_right_triangle, (ask_side,), (2, 3)),
    ),
)
