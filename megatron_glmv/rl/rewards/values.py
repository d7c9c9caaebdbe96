"""JSON out of untrusted text: a value of limited length and depth, nothing else around it."""

from __future__ import annotations

import json
from typing import Any

MAX_CHARS, MAX_DEPTH = 20_000, 32
FENCE = "```"


def unfence(text: str) -> str:
    """What stands in the one code fence of a text, or the text."""
    if text.count(FENCE) != 2:
        return text
    _, inside, _ = text.split(FENCE)
    first, line_end, rest = inside.partition("\n")
    return rest if line_end and len(first.split()) <= 1 else inside


def read_json(text: str) -> Any:
    """The value that the whole text is. Raises ValueError for anything else, and for what is too long or too deep."""
    text = unfence(text).strip()
    if len(text) > MAX_CHARS:
        raise ValueError(f"JSON of more than {MAX_CHARS} characters")
    depth = 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"JSON nested deeper than {MAX_DEPTH}")
    return json.loads(text, parse_constant=_no_constant)


def read_object(value: Any) -> dict[str, Any]:
    """An object, or the text of one. Raises ValueError where it is neither."""
    found = read_json(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
