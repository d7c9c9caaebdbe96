"""Multiple choice: the same letter, or the same set of letters; the text of an option stands for its letter.

`answer`: a letter, several ("AC", ["A", "C"]), or an option's text. `extra`: choices, a list (A, B, ...) or
{letter: text}. An answer that names more letters than the reference is wrong: hedging is not choosing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from megatron_glmv.evaluate.metrics import normalise
from megatron_glmv.rl.rewards.types import Verdict, Verifier, right, undecided, wrong

MAX_CHARS = 2000
_LEAD = re.compile(r"(?:the )?(?:correct )?(?:answer|option|choice)s? ?(?:is|are|:)? ?", re.IGNORECASE)
_LETTERS = re.compile(r"[(\[]?[A-Za-z][)\]]?(?: ?(?:,|and|&|/|or|、|;| ) ?[(\[]?[A-Za-z][)\]]?){0,25}[.):：]?")
_WITH_TEXT = re.compile(r"[(\[]?([A-Z])(?:[)\]]|[.:：、]) ?(\S.*)")
_GLUED = re.compile(r"[A-Z]{2,26}")


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    options = _options(extra.get("choices"))
    meant = letters("".join(answer) if isinstance(answer, (list, tuple)) else str(answer), options)
    if meant is None:
        return undecided("the reference names no option")
    said = letters(final, options)
    if said is None:
        return undecided("no option is named")
    if said == meant:
        return right("the same option" if len(meant) == 1 else "the same options")
    return wrong(f"{'+'.join(sorted(said))} instead of {'+'.join(sorted(meant))}")


def letters(text: str, options: Mapping[str, str]) -> frozenset[str] | None:
    """The options that a text names; None where it names none, or a letter that is no option."""
    if len(text) > MAX_CHARS:
        return None
    text = " ".join(text.split()).strip("*$ ")
    if not text:
        return None
    by_text = [letter for letter, option in options.items() if normalise(option) == normalise(text)]
    if len(by_text) == 1:
        return frozenset(by_text)
    text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    if _GLUED.fullmatch(text):
        found = frozenset(text)
    elif _LETTERS.fullmatch(text):
        found = frozenset(letter.upper() for letter in re.findall(r"\b[A-Za-z]\b", text))
    elif (with_text := _WITH_TEXT.fullmatch(text)) and not re.search(r"\b[B-Z][).:]", with_text[2]):
        found = frozenset(with_text[1])
    else:
        return None
    return found if not options or found <= options.keys() else None


def _options(choices: Any) -> dict[str, str]:
    if not choices:
        return {}
    if isinstance(choices, Mapping):
        return {str(letter).upper(): str(text) for letter, text in choices.items()}
    return dict(zip(ascii_uppercase, map(str, choices), strict=False))


VERIFIER = Verifier("multiple_choice", check, rubric="Does the answer choose the same option as the reference?")
