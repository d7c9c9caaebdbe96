"""Documents of several pages, an image each, with questions that need more than one of them.

Tier 0 has two pages of one coloured shape or one big number, tier 1 three of a number; from tier 2 on pages are tables
of goods, one page a month.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_glmv.data.synthetic.canvas import SHAPES
from megatron_glmv.data.synthetic.domains.drawing import Sheet
from megatron_glmv.data.synthetic.domains.objects import NAMES
from megatron_glmv.data.synthetic.domains.ocr import ITEMS
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium
from megatron_glmv.data.types import IMAGE

PAGES = (2, 3, 4, 6)
ROWS = (1, 1, 3, 6)
NUMBERS = (tuple(range(10)), tuple(range(10, 40)), tuple(range(1, 21)), tuple(range(1, 31)))
MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august")
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True)
class Document:
    media: tuple[Medium, ...]
    titles: tuple[str, ...]
    rows: tuple[str, ...]
    """Names of the rows, the same on every page in an order of its own."""
    cells: dict[tuple[str, str], int]
    """(title, row) -> number; of a row, all pages differ."""

    def row(self, name: str) -> list[int]:
        return [self.cells[title, name] for title in self.titles]


def draw_numbers(d: Draw) -> Document:
    titles = PLACES[: PAGES[d.tier]]
    numbers = d.some(NUMBERS[d.tier], len(titles))
    sheets = []
    for number in numbers:
        sheet = Sheet(d.side, d.side, d.style)
        sheet.text((d.side / 2, d.side / 2), str(number), d.side * (0.6 if d.tier == 0 else 0.45))
        sheets.append(Medium(IMAGE, sheet.pixels()))
    return Document(tuple(sheets), titles, ("",), {(t, ""): n for t, n in zip(titles, numbers, strict=True)})


def draw_shapes(d: Draw) -> Document:
    """Tier 0: a shape of another colour on each page; the cells hold the places of the colours in NAMES."""
    titles = PLACES[: PAGES[d.tier]]
    sheets, cells = [], {}
    for title, colour in zip(titles, d.some(NAMES, len(titles)), strict=True):
        sheet = Sheet(d.side, d.side, d.style)
        sheet.shape(d.pick(SHAPES), (d.side / 4, d.side / 4, d.side * 3 / 4, d.side * 3 / 4), colour)
        sheets.append(Medium(IMAGE, sheet.pixels()))
        cells[title, ""] = NAMES.index(colour)
    return Document(tuple(sheets), titles, ("",), cells)


def draw_tables(d: Draw) -> Document:
    titles = tuple(d.some(MONTHS, PAGES[d.tier]))
    rows = tuple(d.some(ITEMS, ROWS[d.tier]))
    cells = {
        (title, row): number
        for row in rows
        for title, number in zip(titles, d.some(NUMBERS[d.tier], len(titles)), strict=True)
    }
    side, media = d.side, []
    pitch = side / (len(rows) + 2)
    size = min(pitch * 0.5, side * 0.09)
    for number, title in enumerate(titles):
        sheet = Sheet(side, side, d.style)
        sheet.text((side / 2, pitch * 0.6), title, size * 1.2)
        sheet.line([(side * 0.05, pitch), (side * 0.95, pitch)], width=max(1.0, side / 200))
        for place, row in enumerate(d.some(rows, len(rows))):
            y = pitch * (place + 1.55)
            sheet.text((side * 0.08, y), row, size, anchor="lm")
            sheet.text((side * 0.92, y), str(cells[title, row]), size, anchor="rm")
        sheet.text((side * 0.92, side - pitch * 0.3), str(number + 1), size * 0.7)
        media.append(Medium(IMAGE, sheet.pixels()))
    return Document(tuple(media), titles, rows, cells)


def _work(document: Document, steps: list[str]) -> int:
    return len(document.cells) + len(document.titles) + len(steps)


def _what(row: str) -> str:
    return f"number of {row}" if row else "number"


def ask_largest(document: Document, d: Draw) -> Ask:
    """Every page has each rank equally often."""
    row, which = d.pick(document.rows), d.pick(("largest", "smallest"))
    numbers = document.row(row)
    best = max(numbers) if which == "largest" else min(numbers)
    place = PLACES[numbers.index(best)]
    steps = [f"page {i + 1} has {n}" for i, n in enumerate(numbers)] + [f"the {which} is on the {place}"]
    phrasings = ("which page has the {which} {what}?", "on which page is the {what} {which}?")
    return d.ask(
        "document_page", phrasings, place, steps,
        choices=PLACES[: len(numbers)], work=_work(document, steps), which=which, what=_what(row),
    )  # fmt: skip


def _shown(document: Document) -> list[str]:
    return [NAMES[place] for place in document.row("")]


def ask_colour(document: Document, d: Draw) -> Ask:
    place, shown = d.pick(document.titles), _shown(document)
    said = shown[document.titles.index(place)]
    steps = [f"page {i + 1} is {colour}" for i, colour in enumerate(shown)] + [f"the {place} is {said}"]
    phrasings = (
        "which colour is on the {place} page?",
        "name the colour of the {place} page",
        "what colour has the {place} page?",
    )
    return d.ask("document_colour", phrasings, said, steps, choices=NAMES, work=2 * len(shown), place=place)


def ask_where(document: Document, d: Draw) -> Ask:
    shown = _shown(document)
    colour = d.pick(shown)
    place = document.titles[shown.index(colour)]
    steps = [f"page {i + 1} is {name}" for i, name in enumerate(shown)] + [f"{colour} is on the {place}"]
    phrasings = ("which page shows {colour}?", "on which page is the {colour} shape?", "find the {colour} page")
    return d.ask("document_where", phrasings, place, steps, choices=document.titles, work=2 * len(shown), colour=colour)


def ask_difference(document: Document, d: Draw) -> Ask:
    """Of n consecutive numbers two different ones are neighbours with probability 2 / n, farther apart less often."""
    row = d.pick(document.rows)
    a, b = d.some(document.titles, 2)
    high, low = sorted((a, b), key=lambda title: -document.cells[title, row])
    said = document.cells[high, row] - document.cells[low, row]
    steps = [f"{title} has {document.cells[title, row]}" for title in (high, low)]
    steps.append(f"{document.cells[high, row]} - {document.cells[low, row]} = {said}")
    where = "on the {a} and the {b} page" if not row else "in {a} and {b}"
    phrasings = ("what is the difference of the {what} " + where + "?", "how far apart is the {what} " + where + "?")
    return d.ask(
        "document_difference", phrasings, said, steps,
        chance=2 / len(NUMBERS[d.tier]), work=_work(document, steps), a=a, b=b, what=_what(row),
    )  # fmt: skip


def ask_total(document: Document, d: Draw) -> Ask:
    """The sum of k numbers from n without repeats: no total is likelier than one of the last number alone, 1 / n."""
    row = d.pick(document.rows)
    numbers = document.row(row)
    steps, total = [f"page {i + 1} has {n}" for i, n in enumerate(numbers)], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{total} + {number} = {total + number}")
        total += number
    phrasings = ("what is the sum of the {what} over all pages?", "add up the {what} on every page")
    chance = 1 / (len(NUMBERS[d.tier]) - len(numbers) + 1)
    what = _what(row)
    return d.ask("document_total", phrasings, total, steps, chance=chance, work=_work(document, steps), what=what)


DOCUMENT = Domain(
    "document",
    (
        Kind("shapes", draw_shapes, (ask_colour, ask_colour, ask_where), (0,)),
        Kind("numbers", draw_numbers, (ask_largest, ask_largest, ask_difference, ask_total), (0, 1)),
        Kind("tables", draw_tables, (ask_largest, ask_difference, ask_total), (2, 3)),
    ),
)
