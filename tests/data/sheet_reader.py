"""Answers of the procedural domains found again from what is written and drawn on their sheets: the texts, rectangles
and ellipses that were handed to the drawing, with their places, and the words of the question."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from data.scene_reader import asked, coloured

from megatron_glmv.data.synthetic.canvas import COLOURS
from megatron_glmv.data.synthetic.domains.drawing import Sheet
from megatron_glmv.data.synthetic.domains.problem import Ask, Problem

PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass
class Record:
    """What one sheet was told to draw. Places are shares of its side."""

    texts: list[tuple[float, float, str]] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    filled: list[bool] = field(default_factory=list)
    ellipses: list[tuple[float, float, float, float]] = field(default_factory=list)

    def where(self, text: str) -> tuple[float, float]:
        ((x, y),) = [(x, y) for x, y, t in self.texts if t == text]
        return x, y


@contextmanager
def recorded() -> Iterator[list[Record]]:
    """Everything drawn inside is drawn as ever, and listed by sheet."""
    records: list[Record] = []
    by_sheet: dict[int, Record] = {}
    init, text, box, ellipse = Sheet.__init__, Sheet.text, Sheet.box, Sheet.ellipse

    def new(self: Sheet, *args: Any) -> None:
        init(self, *args)
        by_sheet[id(self)] = Record()
        records.append(by_sheet[id(self)])

    def write(self: Sheet, at: tuple[float, float], said: str, *args: Any, **more: Any) -> None:
        by_sheet[id(self)].texts.append((at[0] / self.width, at[1] / self.height, said))
        text(self, at, said, *args, **more)

    def rectangle(self: Sheet, at: Any, fill: Any = None, *args: Any, **more: Any) -> None:
        by_sheet[id(self)].boxes.append(tuple(v / self.width for v in at))
        by_sheet[id(self)].filled.append(fill is not None)
        box(self, at, fill, *args, **more)

    def oval(self: Sheet, at: Any, *args: Any, **more: Any) -> None:
        by_sheet[id(self)].ellipses.append(tuple(v / self.width for v in at))
        ellipse(self, at, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in (("__init__", new), ("text", write), ("box", rectangle), ("ellipse", oval)):
            patch.setattr(Sheet, name, stand_in)
        yield records


def _holds(at: tuple[float, float, float, float], x: float, y: float) -> bool:
    return at[0] <= x <= at[2] and at[1] <= y <= at[3]


def math_(record: Record, problem: Problem, ask: Ask) -> str:
    numbers = [(x, y, int(t.rstrip("°"))) for x, y, t in record.texts if t != "?"]
    if ask.task == "math_sum":
        return str(sum(n for x, y, n in numbers if any(_holds(at, x, y) for at in record.ellipses)))
    if ask.task == "math_area":
        if not numbers:
            return str(len(record.boxes))
        if len(numbers) == 2:
            return str(numbers[0][2] * numbers[1][2] // (2 if problem.tier == 2 else 1))
        low, left = max(numbers, key=lambda n: n[1]), min(numbers, key=lambda n: n[0])
        return str(low[2] * left[2] - math.prod(n[2] for n in numbers if n not in (low, left)))
    if ask.task == "math_angle":
        total = sum(n for _, _, n in numbers)
        return str(total if problem.tier == 3 else 180 - total)
    a, b = sorted(n for _, _, n in numbers)
    slanted = record.where("?")[1] < 0.45  # the mark stands at the middle of the longest side
    return str(round(math.hypot(a, b) if slanted else math.sqrt(b * b - a * a)))


def physics(record: Record, problem: Problem, ask: Ask) -> str:
    given: dict[str, list[tuple[float, float, int]]] = {}
    for x, y, text in record.texts:
        number, unit = text.split()
        given.setdefault(unit, []).append((x, y, int(number)))
    if ask.task == "physics_force":
        net = sum(n if x > 0.5 else -n for x, _, n in given["N"])
        return f"{net // given['kg'][0][2]} m/s^2" if "kg" in given else f"{net} N"
    if ask.task == "physics_distance":
        fast, long = ("km/h", "min") if "min" in given else ("m/s", "s")
        way = sum(v[2] * t[2] for v, t in zip(given[fast], given[long], strict=True))
        return f"{way // 60} km" if fast == "km/h" else f"{way} m"
    high, low = ([n for _, y, n in given["Ω"] if (y < 0.5) == top] for top in (True, False))
    whole = sum(high) + (sum(low) if len(low) < 2 else 1 / sum(1 / n for n in low))
    return f"{round(given['V'][0][2] / whole)} A"


def ocr(record: Record, problem: Problem, ask: Ask) -> str:
    said = asked(ask)
    if ask.task in ("ocr_text", "ocr_sign"):
        return "".join(text for _, _, text in sorted(record.texts))
    if ask.task == "ocr_line":
        lines = [text for _, _, text in sorted(record.texts, key=lambda t: t[1])]
        return lines[next(i for i, place in enumerate(PLACES) if place in said)]
    item = next(text for x, _, text in record.texts if x < 0.5 and re.search(rf"\b{text}\b", said))
    return next(t for x, y, t in record.texts if x > 0.5 and y == record.where(item)[1])


def document(records: list[Record], ask: Ask) -> str:
    said = asked(ask)
    pages = []
    for record in records:
        if len(record.texts) == 1:
            pages.append(("", int(record.texts[0][2])))
            continue
        title, *_ = sorted(record.texts, key=lambda t: t[1])
        row = next(t for x, _, t in record.texts if x < 0.2 and re.search(rf"\b{t}\b", said))
        number = next(t for x, y, t in record.texts if x > 0.8 and y == record.where(row)[1])
        pages.append((title[2], int(number)))
    numbers = [number for _, number in pages]
    if ask.task == "document_page":
        return PLACES[numbers.index(max(numbers) if "largest" in said else min(numbers))]
    if ask.task == "document_total":
        return str(sum(numbers))
    names = [title or PLACES[i] for i, (title, _) in enumerate(pages)]
    a, b = (number for name, number in zip(names, numbers, strict=True) if re.search(rf"\b{name}\b", said))
    return str(abs(a - b))


def gui(record: Record, problem: Problem, ask: Ask) -> str:
    """The action, its box rebuilt from the rectangle that belongs to the named label."""
    said, labels = asked(ask), {text: (x, y) for x, y, text in record.texts}

    def click(at: tuple[float, ...], **more: str) -> str:
        box = [min(999, round(v * 1000)) for v in at]
        kind = {"action_type": "input_text" if more else "click", "box_2d": box}
        return json.dumps(kind | more, separators=(",", ":"))

    if problem.tier == 0:
        name = next(n for n in COLOURS if n in said)
        frame = problem.media[0].pixels
        at = next(
            at
            for at in record.boxes
            if coloured(frame, name)[int((at[1] + 0.1) * len(frame)), int((at[0] + 0.1) * len(frame))]
        )
        return click(at)
    if ask.task == "gui_odd":
        switches = [
            (at, on) for at, on in zip(record.boxes, record.filled, strict=True) if at[0] > 0.7 and at[1] > 0.11
        ]
        states = [on for _, on in switches]
        return click(next(at for at, on in switches if states.count(on) == 1))
    found = [text for text in labels if re.search(rf"\b{text}\b", said)]
    if ask.task == "gui_find" and not found:
        return '{"action_type":"scroll","direction":"down"}'
    name = max(found, key=len)
    x, y = labels[name]
    if ask.task == "gui_press":
        return click(next(at for at in record.boxes if _holds(at, x, y)))
    level = [at for at in record.boxes if at[1] < y < at[3] and at[1] > 0.11]
    if ask.task == "gui_type":
        (text,) = set(re.findall(r"\w+", said)) - set(re.findall(r"\w+", "type into fill in the write field")) - {name}
        return click(next(at for at in level if at[0] > x), text=text)
    return click(level[0])


def read(records: list[Record], problem: Problem, ask: Ask) -> str:
    """The answer of a domain that writes on sheets, or shows a shape in the middle of pages."""
    if ask.task in ("document_colour", "document_where"):
        said, half = asked(ask), problem.media[0].pixels.shape[0] // 2
        shown = [next(n for n in COLOURS if coloured(page.pixels, n)[half, half]) for page in problem.media]
        if ask.task == "document_colour":
            return shown[next(i for i, place in enumerate(PLACES) if re.search(rf"\b{place}\b", said))]
        return PLACES[shown.index(next(n for n in COLOURS if re.search(rf"\b{n}\b", said)))]
    if problem.domain == "document":
        return document(records, ask)
    reader = {"math": math_, "physics": physics, "ocr": ocr, "gui_action": gui}[problem.domain]
    return reader(records[0], problem, ask)


WRITTEN = ("math", "physics", "ocr", "document", "gui_action")
