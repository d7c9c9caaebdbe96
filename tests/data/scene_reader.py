"""Answers of the procedural domains found again from what is shown: pixels and the words of the question, with none of
the generators' own bookkeeping."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from megatron_glmv.data.synthetic.canvas import COLOURS, Pixels
from megatron_glmv.data.synthetic.domains.problem import OPENERS, Ask, Problem

Reader = Callable[[Problem, Ask], str]


def coloured(frame: Pixels, name: str) -> np.ndarray:
    """[h, w] bool: pixels of this colour."""
    return np.abs(frame.astype(int) - COLOURS[name]).sum(-1) < 40


def asked(ask: Ask) -> str:
    """The question without its opener."""
    return ask.question.removeprefix(OPENERS[ask.wording[0]])


@dataclass(frozen=True)
class Seen:
    row: int
    column: int
    colour: str
    shape: str
    box: tuple[int, int, int, int]


def look(frame: Pixels, cells: int) -> list[Seen]:
    """The coloured shapes in the cells of a grid, told apart by how much of their box they fill, and where."""
    size = frame.shape[0] // cells if frame.shape[0] % cells == 0 else frame.shape[0] / cells
    found = []
    for row in range(cells):
        for column in range(cells):
            top, left = round(row * size), round(column * size)
            part = frame[top : round((row + 1) * size), left : round((column + 1) * size)]
            for name in COLOURS:
                mask = coloured(part, name)
                if mask.sum() < 20:
                    continue
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                high, wide = tight.shape
                corner = tight[-max(2, high // 8) :, : max(2, wide // 8)].mean()
                fill = tight.mean()
                shape = "square" if fill > 0.9 else "circle" if fill > 0.66 else "triangle" if corner > 0.3 else "cross"
                box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
                found.append(Seen(row, column, name, shape, tuple(int(v) for v in box)))  # type: ignore[arg-type]
    return found


def _named(seen: Iterable[Seen], colour: str, shape: str = "") -> list[Seen]:
    return [one for one in seen if one.colour == colour and shape in ("", one.shape)]


def counting(problem: Problem, ask: Ask) -> str:
    seen = look(problem.media[0].pixels, (4, 4, 6, 8)[problem.tier])
    for name in COLOURS:
        if name in asked(ask):
            shape = next((s for s in ("circle", "square", "triangle", "cross") if s in asked(ask)), "")
            return str(len(_named(seen, name, shape)))
    return str(len(seen))


def spatial(problem: Problem, ask: Ask) -> str:
    frame = problem.media[0].pixels
    if problem.tier < 2:
        seen = look(frame, 4)
        (a, b) = re.findall(r"the (\w+) (circle|square|triangle|cross)", asked(ask))
        (one,), (other,) = _named(seen, *a), _named(seen, *b)
        if one.row == other.row:
            return "left of" if one.column < other.column else "right of"
        return "above" if one.row < other.row else "below"
    cells = (0, 0, 4, 6)[problem.tier]
    seen = look(frame, cells)
    taken = {(one.row, one.column) for one in seen}
    ((row, column),) = {divmod(i, cells) for i in range(cells * cells)} - taken
    for way in re.findall(r"\b(left|right|up|down)\b", asked(ask)):
        row, column = row + {"up": -1, "down": 1}.get(way, 0), column + {"left": -1, "right": 1}.get(way, 0)
    end = next(one for one in seen if (one.row, one.column) == (row, column))
    return end.colour if "colour" in asked(ask) else end.shape


def boxes(problem: Problem, ask: Ask) -> list[list[float]]:
    """The boxes asked for, in thousandths, unrounded."""
    frame = problem.media[0].pixels
    seen = look(frame, (4, 4, 4, 6)[problem.tier])
    colour = next(name for name in COLOURS if re.search(rf"\b{name}\b", asked(ask)))
    shape = next((s for s in ("circle", "square", "triangle", "cross") if s in asked(ask)), "")
    return sorted([v * 1000 / frame.shape[0] for v in one.box] for one in _named(seen, colour, shape))


def video(problem: Problem, ask: Ask) -> str:
    film = problem.media[0].pixels
    side = film.shape[1]
    if ask.task == "video_direction":
        name = next(n for n in COLOURS if n in asked(ask))
        masks = [coloured(frame, name) for frame in film]
        steps = {
            f"{v} {h}".strip(): (dv, dh)
            for v, dv in (("up", -1), ("", 0), ("down", 1))
            for h, dh in (("left", -1), ("", 0), ("right", 1))
        }
        fits = {
            way: sum((np.roll(a, (dv * side // 8, dh * side // 8), (0, 1)) & b).sum() for a, b in pairwise(masks))
            for way, (dv, dh) in steps.items()
            if way in ask.choices
        }
        return max(fits, key=fits.__getitem__)
    middle = [next((n for n in COLOURS if coloured(f, n)[side // 2, side // 2]), "") for f in film]
    shown = [name for place, name in enumerate(middle) if place == 0 or name != middle[place - 1]]
    if ask.task == "video_count":
        return str(sum(bool(name) for name in shown))
    if ask.task == "video_end":
        return shown[0] if "first" in asked(ask) else shown[-1]
    named = next(n for n in COLOURS if n in asked(ask).replace("colour", ""))
    return shown[shown.index(named) + 1]


def text(problem: Problem, ask: Ask) -> str:
    said = asked(ask)
    if ask.task == "text_sum":
        return str(sum(map(int, re.findall(r"\d+", said))))
    if ask.task == "text_order":
        older = [
            (a, b) if how == "older" else (b, a)
            for a, how, b in re.findall(r"(\w+) is (older|younger) than (\w+)", said)
        ]
        names = {name for pair in older for name in pair}
        taken = {b for _, b in older} if "oldest" in said else {a for a, _ in older}
        (left,) = names - taken
        return left
    listed = [word for word in re.findall(r"\w+", said) if word in COLOURS]
    if ask.task == "text_place":
        place = next(p for p in ("first", "second", "third", "fourth", "fifth", "sixth") if p in said)
        return listed[("first", "second", "third", "fourth", "fifth", "sixth").index(place)]
    word = listed.pop()
    return listed[listed.index(word) + 1]


def chart(problem: Problem, ask: Ask) -> str:
    """Values by the height of bars and marks over the axes, whose place the picture's layout fixes; labels by the order
    in which they are written."""
    tier, drawn, frame = problem.tier, problem.scene, problem.media[0].pixels
    side, top = frame.shape[0], (5, 6, 50, 100)[tier]
    margin = (0.02, 0.2, 0.14, 0.14)[tier]
    floor, height = side * (1 - margin), side * (0.95 - margin)
    ceiling = top if tier == 0 else {1: 6, 2: 50, 3: 100}[tier] * 1.05

    said, labels = asked(ask), drawn.labels

    def value(name: str, place: int) -> int:
        colours = [name] if name else [drawn.labels[place]] if tier == 0 else list(COLOURS)
        mask = np.any([coloured(frame, one) for one in colours], axis=0)
        left, wide = side * margin, side * (0.97 - margin)
        if tier == 0:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert place == round((columns.mean() - left) / wide * 4 - 0.5)
        else:
            shown = mask if drawn.kind == "bars" else np.any([coloured(frame, one) for one in COLOURS], axis=0)
            columns_of = _centres(shown, drawn, len(labels))
            column = columns_of[place]
            rows = np.flatnonzero(mask[:, round(column) - 1 : round(column) + 2].any(1))
        at = rows[0] if drawn.kind == "bars" else (rows[0] + rows[-1]) / 2
        step = (1, 1, 5, 5)[tier]
        return round((floor - at) / height * ceiling / step) * step

    name = next((n for n in drawn.series if n and n in said), "")
    if ask.task in ("chart_extreme", "chart_year"):
        values = [value(name, place) for place in range(len(labels))]
        return labels[values.index(max(values) if "highest" in said else min(values))]
    named = [place for place, label in enumerate(labels) if re.search(rf"\b{label}\b", said)]
    if ask.task == "chart_value":
        return str(value(name, named[0]))
    return str(abs(value(name, named[0]) - value(name, named[1])))


def _centres(mask: np.ndarray, drawn: Any, count: int) -> list[float]:
    """Column of each place: bars are runs of columns, points stand evenly between the outermost marks."""
    columns = np.flatnonzero(mask.any(0))
    if drawn.kind == "bars":
        runs = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
        assert len(runs) == count
        return [float(run.mean()) for run in runs]
    marker = 4.0  # half a mark of 6 points at 100 dots an inch
    return list(np.linspace(columns[0] + marker, columns[-1] - marker, count))


READERS: dict[str, Reader] = {"counting": counting, "spatial": spatial, "video": video, "text": text, "chart": chart}
