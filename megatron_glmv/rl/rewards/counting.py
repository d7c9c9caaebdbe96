"""Counting: the same whole number, in digits or in words up to twenty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_glmv.evaluate.metrics import normalise
from megatron_glmv.rl.rewards.exact import references
from megatron_glmv.rl.rewards.numbers import parse_number
from megatron_glmv.rl.rewards.types import Verdict, Verifier, right, undecided, wrong

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


def count_of(text: str) -> float | None:
    word = normalise(text[:64])
    return float(WORDS.index(word)) if word in WORDS else parse_number(text)


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    said = count_of(final)
    if said is None:
        return undecided("no number")
    if any(said == count_of(reference) for reference in references(answer)):
        return right("the same number")
    return wrong("another number")


VERIFIER = Verifier("counting", check, rubric="Does the answer state the same number of things as the reference?")
