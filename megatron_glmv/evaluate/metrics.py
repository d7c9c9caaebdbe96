"""Grading answers by exact match, and what a share of right answers is worth.

Letters: n graded answers, k right ones, p the share right, c the share right by chance, z a normal quantile.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # data.types imports torch, and verifier processes compare answers without it
    from megatron_glmv.data.types import Json

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""

_BOX = re.compile(r"<\|begin_of_box\|>(.*?)<\|end_of_box\|>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)
_EDGES = " \t\n.,;:!?\"'`*"


def extract(reply: str) -> str:
    """The final answer in a model's reply: behind its thinking, inside <answer>, inside the last box.

    Thinking that was begun and never closed leaves no answer: the reply ran into its length limit.
    """
    if "</think>" in reply:
        reply = reply.rsplit("</think>", 1)[1]
    elif "<think>" in reply:
        return ""
    if tagged := _ANSWER.findall(reply):
        reply = tagged[-1]
    if boxed := _BOX.findall(reply):
        reply = boxed[-1]
    return reply.strip()


def normalise(text: str) -> str:
    """The form in which answers are compared: compatibility characters folded, no case, single spaces, bare edges."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(_EDGES)


def exact_match(reply: str, answer: str) -> bool:
    """True when reply and answer are the same after `extract` and `normalise`. An empty reply is never right."""
    said = normalise(extract(reply))
    return said != "" and said == normalise(answer)


def wilson(k: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Interval of a share k / n (Wilson 1927): inside [0, 1], not empty at 0 or n right answers. n = 0 gives (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = k / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def above_chance(p: float, c: float) -> float:
    """(p - c) / (1 - c): 0 at chance, 1 when all is right, negative below chance. c = 1 leaves nothing to win: 0."""
    return (p - c) / (1 - c) if c < 1 else 0.0


@dataclass(frozen=True)
class Graded:
    """One answered question."""

    id: str
    task: str
    tier: str
    domain: str
    answer: str
    chance: float
    """Share right of one who picks among the choices at random; 0 for an open question."""
    reply: str
    correct: bool


@dataclass(frozen=True)
class Score:
    """A group of graded answers. The interval is that of `above_chance`, at 95 %."""

    n: int
    correct: int
    accuracy: float
    chance: float
    above_chance: float
    low: float
    high: float
    majority: float
    """Share right of one who always gives the most frequent answer: what can be had without looking."""

    def to_json(self) -> Json:
        return asdict(self)


def score(graded: Sequence[Graded]) -> Score:
    """The score of a group; chance is the mean over its questions."""
    n = len(graded)
    if n == 0:
        return Score(0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    correct = sum(g.correct for g in graded)
    chance = math.fsum(g.chance for g in graded) / n
    low, high = (above_chance(bound, chance) for bound in wilson(correct, n))
    frequent = Counter(normalise(g.answer) for g in graded).most_common(1)[0][1]
    accuracy = correct / n
    return Score(n, correct, accuracy, chance, above_chance(accuracy, chance), low, high, frequent / n)


def score_by(graded: Iterable[Graded], field: str) -> dict[str, Score]:
    """Scores of the groups that share a value of `field` (task, tier or domain), sorted by that value."""
    groups: dict[str, list[Graded]] = {}
    for one in graded:
        groups.setdefault(getattr(one, field), []).append(one)
    return {name: score(groups[name]) for name in sorted(groups)}
