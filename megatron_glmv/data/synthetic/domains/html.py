"""Code from a rendered page: the HTML that was drawn, graded by comparing trees (`markup.same`).

The page is rendered from the answer itself, by the small renderer in `page.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_glmv.data.synthetic.domains.drawing import Sheet
from megatron_glmv.data.synthetic.domains.markup import Node, parse
from megatron_glmv.data.synthetic.domains.objects import NAMES
from megatron_glmv.data.synthetic.domains.ocr import ITEMS, word
from megatron_glmv.data.synthetic.domains.page import render
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium
from megatron_glmv.data.types import IMAGE


@dataclass(frozen=True)
class Source:
    media: tuple[Medium, ...]
    html: str


def draw_blocks(d: Draw) -> Source:
    """Tier 0: two coloured blocks."""
    return _source(d, [f'<div style="background:{d.pick(NAMES)}"></div>' for _ in range(2)])


def draw_heading(d: Draw) -> Source:
    """Tier 1: a heading or paragraph in a colour, and a block, in any order."""
    tag = d.pick(("h1", "p"))
    parts = [
        f'<{tag} style="color:{d.pick(NAMES)}">{word(d, 1)}</{tag}>',
        d.pick(("<hr>", f'<div style="background:{d.pick(NAMES)}"></div>')),
    ]
    return _source(d, d.some(parts, 2))


def draw_list(d: Draw) -> Source:
    """Tier 2: heading, list and button."""
    kind = d.pick(("ul", "ol"))
    items = "".join(f"<li>{item}</li>" for item in d.some(ITEMS, d.between(2, 4)))
    button = f'<button style="background:{d.pick(NAMES)}">{word(d, 1)}</button>'
    return _source(d, [f"<h1>{word(d, 2)}</h1>", *d.some([f"<{kind}>{items}</{kind}>", button], 2)])


def draw_table(d: Draw) -> Source:
    """Tier 3: heading, paragraph, table, list, button and rule."""
    columns = d.between(2, 3)
    rows = "".join(
        "<tr>" + "".join(f"<td>{d.pick(ITEMS) if not c else d.between(1, 99)}</td>" for c in range(columns)) + "</tr>"
        for _ in range(d.between(2, 4))
    )
    items = "".join(f'<li style="color:{d.pick(NAMES)}">{word(d, 1)}</li>' for _ in range(d.between(2, 3)))
    parts = [
        f"<p>{word(d, 2)} {word(d, 1)}</p>",
        f"<table>{rows}</table>",
        f"<ul>{items}</ul>",
        f'<button style="background:{d.pick(NAMES)}">{word(d, 1)}</button>',
        "<hr>",
    ]
    return _source(d, [f'<h1 style="color:{d.pick(NAMES)}">{word(d, 2)}</h1>', *d.some(parts, len(parts))])


def _source(d: Draw, parts: list[str]) -> Source:
    html, sheet = "".join(parts), Sheet(d.side, d.side, d.style)
    render(sheet, html)
    return Source((Medium(IMAGE, sheet.pixels()),), html)


def _work(node: Node) -> int:
    """Elements, styles and letters."""
    return 1 + len(node.style) + len(node.text) + sum(map(_work, node.children))


def ask_html(source: Source, d: Draw) -> Ask:
    blocks = parse(source.html).children
    steps = [
        f"block {number + 1} is {block.tag}" + "".join(f", {what} {name}" for what, name in block.style)
        for number, block in enumerate(blocks)
    ]
    phrasings = ("write the html of this page", "give the html that shows this", "which html makes this page?")
    # two blocks of six colours are 36 pages; a random word has at least 400 forms
    chance = 1 / 36 if d.tier == 0 else 0.002
    return d.ask("html_page", phrasings, source.html, steps, chance=chance, work=_work(parse(source.html)))


HTML = Domain(
    "html",
    (
        Kind("blocks", draw_blocks, (ask_html,), (0,)),
        Kind("heading", draw_heading, (ask_html,), (1,)),
        Kind("list", draw_list, (ask_html,), (2,)),
        Kind("table", draw_table, (ask_html,), (3,)),
    ),
)
