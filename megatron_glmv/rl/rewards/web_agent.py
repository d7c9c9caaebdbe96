"""A task on the web: its final answer, or the actions that lead to it.

Final answer (WebVoyager, arXiv 2401.13919; WebQuest): the same text or number as one of the references, as for `vqa`;
what that leaves open a judge model decides, as WebVoyager's does.

Actions, one a line (`Click [3]`, `Type [5]; [text]`, `ANSWER; [text]`: the released agent's form) or a JSON list of
{"op", "element", "value"}. A step is right, as in Mind2Web (arXiv 2306.06070, 4.1), where its element is one of those
accepted and its operation is: the same action and a value of token F1 1. Mind2Web is given the true history before
each step; a trajectory that a model wrote is aligned to the reference instead (longest common subsequence of right
steps, ours), so that one step too many costs a step and not all that follow:

    reward = right steps / the longer count of steps

With `extra` whole only a trajectory without a wrong step is rewarded (Mind2Web's task success). Where the ANSWER is
another text, the judge model is asked; its yes makes the task a success, whatever the steps were.

`answer`: text or number, or a list of them that are accepted; or the actions, in either form, an element being a list
where several are accepted. `extra`: kind (answer, actions; else told from the answer), whole, tolerance.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_glmv.evaluate.metrics import normalise
from megatron_glmv.rl.rewards import vqa
from megatron_glmv.rl.rewards.types import Verdict, Verifier, wrong
from megatron_glmv.rl.rewards.values import read_json, unfence

MAX_CHARS, MAX_STEPS = 20_000, 200
ANSWER = "answer"
_LINE = re.compile(r"([A-Za-z]{1,20}) {0,4}(?:\[([^\[\]]{0,200})\])? {0,4}(?:; {0,4}(?:\[(.{0,4000})\]|(.{0,4000})))?")
_NAMES = "Click|Type|Select|Hover|Scroll|Wait|GoBack|Bing|Google|Key|ANSWER"
_FIRST = re.compile(rf"\s*(?:\[\s*\{{|(?:{_NAMES})\b *(?:\[|;|\Z|\n))")


@dataclass(frozen=True)
class Step:
    op: str
    elements: frozenset[str]
    """The one that is meant; of a reference all that are accepted."""
    value: str

    def does(self, reference: Step, tolerance: Mapping[str, Any]) -> bool:
        if self.op != reference.op:
            return False
        if self.elements != reference.elements and not (self.elements and self.elements <= reference.elements):
            return False
        if self.op == ANSWER:
            return vqa.check(self.value, reference.value, tolerance).reward == 1.0
        return Counter(normalise(self.value).split()) == Counter(normalise(reference.value).split())


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    if len(final) > MAX_CHARS:
        return wrong(f"more than {MAX_CHARS} characters")
    kind = str(extra.get("kind") or ("actions" if _holds_actions(answer) else "answer"))
    tolerance = {"tolerance": extra["tolerance"]} if "tolerance" in extra else {}
    if kind == "answer":
        return vqa.check(_said(final), answer, tolerance)
    if kind != "actions":
        return wrong(f"kind {kind[:20]!r} is neither answer nor actions")
    said, meant = read_steps(final), read_steps(answer, reference=True)
    hits = aligned(said, meant, tolerance)
    share = hits / max(len(said), len(meant))
    reward = float(share == 1) if extra.get("whole") else share
    reason = f"{hits} of {len(meant)} steps, {len(said)} made"
    if share < 1 and _open_answer(said, meant, tolerance):
        return Verdict(reward, f"{reason}; another text as the answer", undecided=True)
    return Verdict(reward, reason)


def _said(final: str) -> str:
    """The text of an answer that is written as an action."""
    found = _LINE.fullmatch(final.strip())
    return (found[3] or found[4] or "").strip() if found and found[1].casefold() == ANSWER else final


def _open_answer(said: Sequence[Step], meant: Sequence[Step], tolerance: Mapping[str, Any]) -> bool:
    """Whether both end in an answer whose texts rules cannot compare."""
    if said[-1].op != ANSWER or meant[-1].op != ANSWER or not said[-1].value:
        return False
    return vqa.check(said[-1].value, meant[-1].value, tolerance).undecided


def _holds_actions(answer: Any) -> bool:
    if isinstance(answer, list):
        return bool(answer) and all(isinstance(one, Mapping) for one in answer)
    return isinstance(answer, str) and _FIRST.match(unfence(answer)) is not None


def read_steps(actions: Any, *, reference: bool = False) -> list[Step]:
    """The steps of a text, or of a list of objects. Raises ValueError for none, too many, or what is no action."""
    text = unfence(actions).strip() if isinstance(actions, str) else ""
    given = read_json(text) if text.startswith("[") else actions
    if isinstance(given, str):
        steps = [_line(line) for line in text.splitlines() if line.strip()]
    elif isinstance(given, list):
        steps = [_object(one, reference) for one in given]
    else:
        raise ValueError("neither lines nor a list of actions")
    if not 0 < len(steps) <= MAX_STEPS:
        raise ValueError(f"{len(steps)} actions: 1 to {MAX_STEPS}")
    return steps


def _line(line: str) -> Step:
    found = _LINE.fullmatch(line.strip())
    if found is None:
        raise ValueError(f"no action of the form Name [element]; [value]: {line.strip()[:80]!r}")
    value = found[3] if found[3] is not None else found[4] or ""
    return Step(found[1].casefold(), _elements(found[2]), value.strip())


def _object(one: Any, reference: bool) -> Step:
    if not isinstance(one, dict) or not isinstance(one.get("op"), str) or set(one) - {"op", "element", "value"}:
        raise ValueError('an action is {"op", "element", "value"}')
    element, value = one.get("element"), one.get("value", "")
    if isinstance(element, list) and not reference:
        raise ValueError("an action has one element")
    if not isinstance(value, str | int | float):
        raise ValueError("a value is text or a number")
    several = element if isinstance(element, list) else [element]
    return Step(one["op"].strip().casefold(), frozenset().union(*map(_elements, several)), str(value).strip())


def _elements(element: Any) -> frozenset[str]:
    if element is not None and not isinstance(element, str | int):
        raise ValueError("an element is a label or a number")
    label = "" if element is None else str(element).strip().casefold()
    return frozenset({label}) if label else frozenset()


def aligned(said: Sequence[Step], meant: Sequence[Step], tolerance: Mapping[str, Any]) -> int:
    """Right steps in the best alignment that keeps the order of both."""
    row = [0] * (len(meant) + 1)
    for step in said:
        before = row[:]
        for i, goal in enumerate(meant):
            row[i + 1] = before[i] + 1 if step.does(goal, tolerance) else max(before[i + 1], row[i])
    return row[-1]


VERIFIER = Verifier(
    "web_agent",
    check,
    rubric="Does the answer, or the answer that these actions end in, fulfil the task as the reference does?",
)
