"""A small part of HTML rendered with Pillow, so that a page looks the same on every machine.

Blocks below one another: h1, h2, p, button, hr, div (background), ul and ol with li, table with tr and td. Attributes:
style with color and background, by the names of canvas.COLOURS. What a page says is all that is drawn.
"""

from __future__ import annotations

from megatron_glmv.data.synthetic.canvas import COLOURS, Rgb
from megatron_glmv.data.synthetic.domains.drawing import Sheet
from megatron_glmv.data.synthetic.domains.markup import Node, parse


def _colour(node: Node, what: str) -> Rgb | None:
    name = dict(node.style).get(what)
    return COLOURS[name] if name else None


def render(sheet: Sheet, html: str) -> None:
    """Blocks share the height of the sheet by their weights."""
    blocks = parse(html).children
    weights = [_weight(block) for block in blocks]
    unit, y = sheet.height / max(sum(weights), 4.0), 0.0
    for block, weight in zip(blocks, weights, strict=True):
        _block(sheet, block, y, unit * weight, unit)
        y += unit * weight


def _weight(block: Node) -> float:
    if block.tag in ("ul", "ol", "table"):
        return 0.9 * len(block.children) + 0.2
    return {"h1": 1.6, "h2": 1.2, "hr": 0.4, "div": 2.0, "button": 1.3}.get(block.tag, 1.0)


def _block(sheet: Sheet, block: Node, top: float, height: float, unit: float) -> None:
    width, middle, indent = sheet.width, top + height / 2, sheet.width * 0.06
    ink = _colour(block, "color") or sheet.style.ink
    size = unit * {"h1": 1.1, "h2": 0.85}.get(block.tag, 0.62)
    if block.tag == "hr":
        sheet.line([(indent, middle), (width - indent, middle)], ink, max(1.0, width / 110))
    elif block.tag == "div":
        sheet.box((0, top, width, top + height), _colour(block, "background"))
    elif block.tag == "button":
        at = (indent, top + unit * 0.1, indent + sheet.text_width(block.text, size) + unit, top + height - unit * 0.1)
        sheet.box(at, _colour(block, "background"), sheet.style.ink, max(1.0, width / 160))
        sheet.text(((at[0] + at[2]) / 2, middle), block.text, size, ink)
    elif block.tag in ("ul", "ol"):
        for number, item in enumerate(block.children):
            y = top + unit * (0.55 + 0.9 * number)
            if block.tag == "ol":
                sheet.text((indent, y), f"{number + 1}.", size, ink, "lm")
            else:
                sheet.ellipse((indent, y - unit * 0.12, indent + unit * 0.24, y + unit * 0.12), ink)
            sheet.text((indent + unit * 0.9, y), item.text, size, _colour(item, "color") or ink, "lm")
    elif block.tag == "table":
        columns = max(len(row.children) for row in block.children)
        cell = (width - 2 * indent) / columns
        for number, row in enumerate(block.children):
            y = top + unit * (0.1 + 0.9 * number)
            for place, value in enumerate(row.children):
                x = indent + cell * place
                sheet.box((x, y, x + cell, y + unit * 0.9), outline=sheet.style.ink, width=max(1.0, width / 220))
                sheet.text((x + cell / 2, y + unit * 0.45), value.text, sheet.fit(value.text, cell * 0.9, size))
    else:
        sheet.text((indent, middle), block.text, sheet.fit(block.text, width - 2 * indent, size), ink, "lm")
