"""Charts: numbers within 2.5 %, years exactly, text exactly, else a judge model (the paper's Table 1).

A year is an integer of four digits from 1000 to 3000 as the reference writes it (the released rule); `extra` may say
so itself (year: true or false). A percent sign on one side only is no difference. `extra`: tolerance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megatron_glmv.evaluate.metrics import normalise
from megatron_glmv.rl.rewards.exact import references, same_text
from megatron_glmv.rl.rewards.numbers import MAX_CHARS, parse_with_percent, relative_error
from megatron_glmv.rl.rewards.types import Verdict, Verifier, right, undecided, wrong

TOLERANCE = 0.025
_YEAR = re.compile(r"[12]\d{3}|3000")
_WITH_WORDS = re.compile(r"([$€£¥]?[+-]?[\d.,]*\d)\s*([^\d\s].*)")


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    if same_text(final, answer):
        return right("the same text")
    tolerance = float(extra.get("tolerance", TOLERANCE))
    verdict = undecided("another text")
    for reference in references(answer):
        if extra.get("year", _YEAR.fullmatch(reference.strip()) is not None):
            verdict = wrong("another year")
            continue
        said, meant = _same_words(final, reference)
        a, b = parse_with_percent(said), parse_with_percent(meant)
        if b is None:
            continue
        if a is None:
            verdict = undecided("no number")
            continue
        (value, percent), (goal, goal_percent) = a, b
        readings = [value] if percent == goal_percent else [value, value / 100 if percent else value * 100]
        if any(relative_error(reading, goal) <= tolerance for reading in readings):
            return right(f"a number within {tolerance:.1%}")
        verdict = wrong("another number")
    return verdict


def _same_words(said: str, meant: str) -> tuple[str, str]:
    """Both without the words behind their number where these are the same: 3.1 million and 3 million."""
    if max(len(said), len(meant)) <= MAX_CHARS:
        a, b = _WITH_WORDS.fullmatch(said.strip()), _WITH_WORDS.fullmatch(meant.strip())
        if a and b and normalise(a[2]) == normalise(b[2]) and "%" not in a[2]:
            return a[1], b[1]
    return said, meant


RUBRIC = (
    "Does the answer name the same thing that is read off the chart as the reference? Numbers were compared before."
)
VERIFIER = Verifier("chart", check, rubric=RUBRIC)
