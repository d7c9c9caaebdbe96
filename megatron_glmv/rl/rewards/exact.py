"""Exact match of a word or a number: the project's own synthetic tasks (colour, count, ...), and short closed answers.

Compared after `normalise` (case, compatibility characters, blanks and punctuation at the ends), as `glmv eval` does.
`answer` is text or a number, or a list of them of which one has to be met. The small models answer with the bare
word, so a box may be left out.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from megatron_glmv.evaluate.metrics import normalise
from megatron_glmv.rl.rewards.types import OPTIONAL, Verdict, Verifier, right, wrong

LONGEST_SYMBOL = 3
"""A longer run of letters is a word: its case says nothing."""


def references(answer: Any) -> list[str]:
    """The accepted answers as text; a reference that is empty accepts nothing."""
    several: Iterable[Any] = answer if isinstance(answer, (list, tuple)) else (answer,)
    return [str(one) for one in several if one is not None and str(one).strip()]


def same_text(final: str, answer: Any) -> bool:
    said = normalise(final)
    return said != "" and any(said == normalise(reference) for reference in references(answer))


def same_symbols(final: str, answer: Any) -> bool:
    """As `same_text`, but case matters wherever it may mean something: CO and Co, mW and MW, x and X."""
    said = " ".join(unicodedata.normalize("NFKC", final).split())
    for reference in references(answer):
        meant = " ".join(unicodedata.normalize("NFKC", reference).split())
        words = all(len(word) > LONGEST_SYMBOL and word.isalpha() for word in meant.split())
        if said and (said == meant or (words and normalise(said) == normalise(meant))):
            return True
    return False


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    return right("the same text") if same_text(final, answer) else wrong("another text")


VERIFIER = Verifier("exact", check, box=OPTIONAL)
