"""Mathematics: equal text, equal numbers, or expressions that math-verify finds equal; else a judge model.

The text is never evaluated: `sympify` and `parse_expr` execute what they are given. math-verify's LaTeX grammar (antlr)
builds the expression instead; its extraction of plain expressions goes through `parse_expr` and is not used. Sizes are
limited on the text beforehand (powers and factorials are computed while the expression is built), and the process is
killed from outside when its time is up: arithmetic on huge integers hears no signal.

`answer`: text, number, or a list of texts of which one has to be met. `extra`: tolerance (relative, default 1e-6).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megatron_glmv.rl.rewards.exact import references, same_symbols
from megatron_glmv.rl.rewards.numbers import close, parse_number, plain
from megatron_glmv.rl.rewards.types import Verdict, Verifier, right, undecided, wrong

TOLERANCE = 1e-6
"""The released configuration's; its default is 1e-5."""
MAX_CHARS = 512
MAX_NESTING = 24
MAX_POWERS = 24
MAX_EXPONENT, MAX_FACTORIAL, MAX_DIGITS = 1000, 500, 40
"""Bounds on integers behind ^, before !, and anywhere: 500! has 1,135 digits and takes microseconds."""

_LEGAL = re.compile(r"[\w\s+\-*/^=<>≤≥≠±×÷·√π∞°%!|.,;:'(){}\[\]\\$&∪∩∈∅≈]*")
_UNICODE = str.maketrans({"π": "\\pi ", "∞": "\\infty ", "×": "\\times ", "÷": "\\div ", "·": "\\cdot ", "≤": "\\le "})


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    tolerance = float(extra.get("tolerance", TOLERANCE))
    if same_symbols(final, answer):
        return right("the same text")
    said = parse_number(final)
    for reference in references(answer):
        meant = parse_number(reference)
        if said is not None and meant is not None and close(said, meant, tolerance):
            return right(f"the same number within {tolerance:g}")
    if said is not None and all(parse_number(reference) is not None for reference in references(answer)):
        return wrong("another number")
    if flaw := refused(final):
        return wrong(flaw)
    if any(same_expression(final, reference, tolerance) for reference in references(answer) if not refused(reference)):
        return right("an equal expression")
    return undecided("not the same text, number or expression")


def refused(text: str) -> str:
    """Why a text is not parsed, empty if it may be."""
    text = plain(text)
    if len(text) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    if not _LEGAL.fullmatch(text):
        return "characters that no formula has"
    if "__" in text:
        return "a name of Python's own"
    depth = deepest = 0
    for sign in text:
        depth += (sign in "({[") - (sign in ")}]")
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        return f"brackets nested deeper than {MAX_NESTING}"
    if any(len(digits) > MAX_DIGITS for digits in re.findall(r"\d+", text)):
        return f"an integer of more than {MAX_DIGITS} digits"
    if text.count("!") > 4 or "!!" in text:
        return "factorials of factorials"
    powers = list(re.finditer(r"\^|\*\*", text))
    if len(powers) > MAX_POWERS:
        return f"more than {MAX_POWERS} powers"
    for power in powers:
        exponent = _group(text, power.end())
        numeric = not re.search(r"[A-Za-z]", exponent)
        if numeric and re.search(r"\^|\*\*|!", exponent):
            return "an exponent that is itself a power"
        if any(int(n) > MAX_EXPONENT for n in re.findall(r"\d+", exponent)):
            return "an exponent that is too large"
    if any(int(n) > MAX_FACTORIAL for n in re.findall(r"(\d+)\s*[)}\]]*\s*!", text)) or re.search(r"[)}\]]\s*!", text):
        return "a factorial that is too large"
    return ""


def _group(text: str, start: int) -> str:
    """What ^ at `start` raises to: a bracket with what is in it, or else all up to the next blank or sign."""
    rest = text[start:].lstrip()
    if rest[:1] not in ("{", "("):
        found = re.match(r"[+-]?[^\s+\-*/=,){}]*(?:(?:\*\*|\^)[^\s+\-*/=,){}]*)*", rest)
        return found[0] if found else ""
    depth = 0
    for place, sign in enumerate(rest):
        depth += (sign in "({") - (sign in ")}")
        if depth == 0:
            return rest[1:place]
    return rest


def same_expression(said: str, meant: str, tolerance: float) -> bool:
    """Whether math-verify finds the two equal, or both are numbers within the tolerance."""
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[Any]:
        latex = plain(text).translate(_UNICODE)
        return list(parse(f"${latex}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None))

    left, right_ = read(said), read(meant)
    if not left or not right_:
        return False
    if verify(right_, left, strict=True, timeout_seconds=None):
        return True
    a, b = _value(left[0]), _value(right_[0])
    return a is not None and b is not None and close(a, b, tolerance)


def _value(expression: Any) -> float | None:
    """The real number that an expression without free symbols is."""
    if getattr(expression, "free_symbols", True) or not getattr(expression, "is_number", False):
        return None
    try:
        return float(expression.evalf(15))
    except (TypeError, ValueError, OverflowError):
        return None


RUBRIC = "Is the answer mathematically equivalent to the reference? Equal values in another form are right."
VERIFIER = Verifier("math", check, isolated=True, needs="math_verify", rubric=RUBRIC)
