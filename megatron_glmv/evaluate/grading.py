"""Whether a reply is right: the same text, or, where answers are places and pages, what the domain's verifier says.

The verifiers are those of the rewards (`rl/rewards`); here the box may be missing, as models before SFT write none.
"""

from __future__ import annotations

from megatron_glmv.evaluate.metrics import exact_match, extract
from megatron_glmv.rl.rewards import grounding, gui_action, page
from megatron_glmv.rl.rewards.types import Verifier

ENOUGH = 0.5
"""Least reward of a right reply: an IoU of 0.5 on the screen, half the boxes in a picture."""
VERIFIERS: dict[str, Verifier] = {one.name: one for one in (grounding.VERIFIER, gui_action.VERIFIER, page.VERIFIER)}
"""Domains whose answers have more than one right text."""


def right(domain: str, reply: str, answer: str) -> bool:
    if exact_match(reply, answer):
        return True
    if domain not in VERIFIERS:
        return False
    try:
        return VERIFIERS[domain].check(extract(reply), answer, {}).reward >= ENOUGH
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
