"""Logic puzzles: the same text, the same assignment ("Ann: knight, Bob: knave"), grid or order; else a judge model.

`answer`: text, or a JSON value. Keys and values are compared after normalising; the order of an assignment is free,
that of a list is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megatron_glmv.rl.rewards import vqa
from megatron_glmv.rl.rewards.exact import references
from megatron_glmv.rl.rewards.numbers import parse_number
from megatron_glmv.rl.rewards.types import Verdict, Verifier, right, undecided, wrong
from megatron_glmv.rl.rewards.values import MAX_CHARS, read_json

_PAIR = re.compile(r" ?([^:=]{1,80}?) ?(?:[:=]|\bis (?:an? )?) ?([^:=]{1,80}?) ?")


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    if len(final) > MAX_CHARS:
        return wrong(f"an answer of more than {MAX_CHARS} characters")
    if isinstance(answer, str) or not isinstance(answer, (list, dict)):
        said = vqa.short_form(final)
        if said and any(said == vqa.short_form(one) for one in references(answer)):
            return right("the same text")
    said_shape, meant_shape = shape(final), shape(answer)
    if said_shape == meant_shape and said_shape not in (None, "", [], {}):
        return right("the same solution")
    if type(said_shape) is type(meant_shape) and not isinstance(meant_shape, str):
        return wrong("another solution")
    return undecided("another text")


def shape(value: Any) -> Any:
    """A value for comparison: objects and lists with normalised leaves, numbers as numbers, text that has neither."""
    if isinstance(value, str):
        try:
            read = read_json(value)
        except ValueError:
            return _written(value)
        return shape(read) if not isinstance(read, str) else vqa.short_form(read)
    if isinstance(value, Mapping):
        return {vqa.short_form(str(key)): shape(leaf) for key, leaf in value.items()}
    if isinstance(value, (list, tuple)):
        return [shape(leaf) for leaf in value]
    if isinstance(value, bool) or value is None:
        return vqa.short_form(str(value))
    return float(value)


def _written(text: str) -> Any:
    """An assignment or an order written as text, a number, or the normalised text."""
    pieces = [" ".join(piece.split()) for piece in re.split(r"[,;\n]|\band\b", text) if piece.strip()]
    pairs = [_PAIR.fullmatch(piece) for piece in pieces]
    if len(pieces) > 1 and all(pairs):
        return {vqa.short_form(p[1]): _leaf(p[2]) for p in pairs if p}
    for mark in (">", "<", "→", "->", ","):
        if text.count(mark) and all(part.strip() for part in text.split(mark)):
            return [_leaf(part) for part in text.split(mark)]
    return _leaf(text)


def _leaf(text: str) -> Any:
    number = parse_number(text)
    return vqa.short_form(text) if number is None else number


VERIFIER = Verifier("logic", check, rubric="Does the answer state the same solution of the puzzle as the reference?")
