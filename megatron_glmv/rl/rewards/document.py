"""Long documents: exact text, number or list, "not answerable" in its spellings; else a judge model (semantic).

`answer`: text, number, or a list of texts of which one has to be met; with `extra` all=true the list is the answer
itself, its order free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_glmv.rl.rewards import vqa
from megatron_glmv.rl.rewards.exact import references
from megatron_glmv.rl.rewards.types import Verdict, Verifier, right, undecided, wrong
from megatron_glmv.rl.rewards.values import read_json

TOLERANCE = 0.01
NOT_ANSWERABLE = frozenset(
    {"not answerable", "unanswerable", "cannot be answered", "can not be answered", "fail to answer", "no answer"}
)


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    refused = vqa.short_form(final) in NOT_ANSWERABLE
    meant_refusal = any(vqa.short_form(one) in NOT_ANSWERABLE for one in references(answer))
    if refused or meant_refusal:
        return (
            right("not answerable") if refused and meant_refusal else wrong("answerable or not: the other of the two")
        )
    if extra.get("all"):
        said, meant = _members(final), _members(answer)
        return right("the same list") if said and said == meant else undecided("another list")
    return vqa.check(final, answer, {"tolerance": TOLERANCE, **extra})


def _members(value: Any) -> list[str]:
    """The members of a list, of the JSON of one, or of a text with commas; sorted."""
    if isinstance(value, str):
        try:
            value = read_json(value)
        except ValueError:
            value = value.strip("[]() ").replace(";", ",").split(",")
    several = value if isinstance(value, (list, tuple)) else [value]
    return sorted(vqa.short_form(str(one)) for one in several)


RUBRIC = "Does the answer say the same as the reference, with every fact and number that the question asks for?"
VERIFIER = Verifier("long_document", check, rubric=RUBRIC)
