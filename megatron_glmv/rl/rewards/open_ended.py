"""Prompts without a reference (the RLHF branch): a reward model scores the answer, else a judge model grades it.

A boxed answer is reward 0 there, as in the paper: boxes belong to what can be verified. `answer` may hold an example of
a good answer, for the judge model alone; `extra`: question, rubric, and messages (the conversation up to the answer)
for the reward model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_glmv.rl.rewards.types import FORBIDDEN, Verdict, Verifier, undecided


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    return undecided("nothing to compare with")


RUBRIC = "Grade how well the answer does what the question asks: correct, complete, fluent, nothing that was not asked."
VERIFIER = Verifier("open_ended", check, box=FORBIDDEN, rubric=RUBRIC, graded=True, model_only=True)
