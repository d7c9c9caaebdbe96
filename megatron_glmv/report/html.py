"""HTML and SVG as nested calls. Every text is escaped, for model answers and file names come from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

VOID = frozenset({"img", "br", "meta", "line", "circle", "rect", "path", "polygon"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]
"""None is left out; a str that is not Markup is escaped; what can be iterated is laid out in order."""


def join(children: Iterable[Child]) -> Markup:
    return Markup("".join(_render(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: str | int | float | None) -> Markup:
    """<name attribute="...">children</name>. `class_` is class, `_` a dash, and None leaves an attribute out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def table(head: Sequence[Child], rows: Iterable[Sequence[Child]], class_: str | None = None) -> Markup:
    """A table that scrolls sideways by itself when the window is too narrow for it."""
    body = [tag("tr", [cell if _is_cell(cell) else tag("td", cell) for cell in row]) for row in rows]
    made = tag("table", tag("thead", tag("tr", [tag("th", cell) for cell in head])), tag("tbody", body), class_=class_)
    return tag("div", made, class_="scroll")


def number(value: float, digits: int = 3) -> Markup:
    """A table cell with a right-aligned number; what rounds to 0 has no sign."""
    return tag("td", f"{value:z.{digits}f}", class_="num")


def whole(value: int) -> Markup:
    return tag("td", f"{value:,}", class_="num")


def absent(text: str) -> Markup:
    """What is said where something is not there."""
    return tag("p", text, class_="absent")


def _is_cell(child: Child) -> bool:
    return isinstance(child, Markup) and child.startswith(("<td", "<th"))


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int):
        return escape(str(child), quote=False)
    return join(child)


def _number(value: str | int | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
