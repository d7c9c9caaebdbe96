"""HTML as a tree, read with the standard library alone: verifiers import it in small processes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = ("hr",)
MAX_DEPTH, MAX_CHARS = 32, 20_000
"""Of a page that is read: answers of a model are read, too."""
_STYLE = re.compile(r"\s*(color|background)\s*:\s*(\w+)\s*;?")


@dataclass
class Node:
    """An element. Two pages are the same where their trees are: tags, styles, texts and order."""

    tag: str
    style: tuple[tuple[str, str], ...] = ()
    text: str = ""
    children: list[Node] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("page")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        style = tuple(sorted(_STYLE.findall(dict(attrs).get("style") or "")))
        node = Node(tag, style)
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)
        if len(self.open) > MAX_DEPTH:
            raise ValueError(f"elements nested deeper than {MAX_DEPTH}")

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if len(self.open) < 2 or self.open[-1].tag != tag:
            raise ValueError(f"</{tag}> closes nothing that is open")
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].text += " ".join(data.split())


def parse(html: str) -> Node:
    """The tree of a page. Raises ValueError where tags do not match, or it is too long or too deep."""
    if len(html) > MAX_CHARS:
        raise ValueError(f"a page of more than {MAX_CHARS} characters")
    reader = _Reader()
    try:
        reader.feed(html)
        reader.close()
    except AssertionError as error:  # html.parser's way to refuse a marked section
        raise ValueError(str(error)) from error
    if len(reader.open) > 1:
        raise ValueError(f"<{reader.open[-1].tag}> is not closed")
    return reader.root


def same(said: str, meant: str) -> bool:
    """Whether two pages have equal trees: white space between tags and the order within a style do not matter."""
    try:
        return parse(said) == parse(meant)
    except ValueError:
        return False
