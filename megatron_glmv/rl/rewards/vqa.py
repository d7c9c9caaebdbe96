"""Questions about a picture, a clip or a scene's layout: exact text or number, else a judge model.

The paper asks sympy for exactness; numbers are compared here without it (tolerance 1e-6, `extra` tolerance), articles
in front don't count, and yes/true, no/false are each one answer. `answer` may list several that are right.
Video questions with options go by their letter where `extra` has choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_glmv.evaluate.metrics import normalise
from megatron_glmv.rl.rewards import choice
from megatron_glmv.rl.rewards.exact import references
from megatron_glmv.rl.rewards.numbers import close, parse_number
from megatron_glmv.rl.rewards.types import Verdict, Verifier, right, undecided, wrong

TOLERANCE = 1e-6
_ARTICLES = ("a ", "an ", "the ")
_SAME = {"true": "yes", "false": "no", "correct": "yes", "incorrect": "no"}


def short_form(text: str) -> str:
    """Normalised, without an article in front."""
    text = normalise(text)
    for article in _ARTICLES:
        text = text.removeprefix(article)
    return _SAME.get(text, text)


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    if extra.get("choices"):
        return choice.check(final, answer, extra)
    tolerance = float(extra.get("tolerance", TOLERANCE))
    said, number = short_form(final), parse_number(final)
    if not said:
        return wrong("an empty answer")
    verdict = undecided("another text")
    for reference in references(answer):
        if said == short_form(reference):
            return right("the same text")
        meant = parse_number(reference)
        if number is not None and meant is not None:
            if close(number, meant, tolerance):
                return right("the same number")
            verdict = wrong("another number")
        elif {said, short_form(reference)} == {"yes", "no"}:
            verdict = wrong("the opposite")
    return verdict


VERIFIER = Verifier(
    "vqa", check, rubric="Does the answer mean the same as the reference, as an answer to the question?"
)
SPATIAL = Verifier(
    "spatial", check, rubric="Does the answer name the same place, direction or relation as the reference?"
)
VIDEO = Verifier("video_qa", check, rubric="Does the answer say the same about the video as the reference?")
