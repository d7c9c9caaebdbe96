"""Reading text: 1 - d(answer, reference) / longer length, with d the edit distance (the paper's Table 1).

Blanks and line ends are left out of both, as the released verifier does. `extra`: ignore_case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_glmv.rl.rewards.edit import similarity
from megatron_glmv.rl.rewards.exact import references
from megatron_glmv.rl.rewards.types import Verdict, Verifier, wrong


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    ignore_case = bool(extra.get("ignore_case"))
    said = _solid(final, ignore_case)
    meant = [_solid(one, ignore_case) for one in references(answer)]
    if not said or not meant:
        return wrong("nothing to compare")
    best = max(similarity(said, one) for one in meant)
    return Verdict(best, f"similarity {best:.3f}")


def _solid(text: str, ignore_case: bool) -> str:
    text = "".join(text.split())
    return text.casefold() if ignore_case else text


VERIFIER = Verifier("ocr", check)
