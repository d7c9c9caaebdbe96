"""What a broken rule reports, and the small arithmetic that finds candidates near a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .schema import Config


@dataclass(frozen=True)
class Problem:
    """`rule` names the rule, so that a repair can be seen to have answered it."""

    rule: str
    option: str
    value: Any
    message: str
    repairs: tuple[tuple[str, Iterable[Any]], ...] = field(default=(), compare=False)
    """(option, values to try, nearest first). Candidates only: `validate.py` tries them and names those that help."""
    advice: str = field(default="", compare=False)
    """What to do besides, or instead, in words."""


Rule = Callable[[Config, int | None], Iterator[Problem]]


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def near(value: float, candidates: Iterable[Any]) -> list[Any]:
    """Candidates by distance from `value`, the smaller first where two are equally far."""
    return sorted(set(candidates), key=lambda candidate: (abs(candidate - value), candidate))


def multiples(value: int, of: int, at_least: int = 1) -> list[int]:
    """The multiples of `of` on both sides of `value`, and a few further up."""
    low = max(value // of, 1) * of
    return near(value, [n for n in (low, *(low + of * i for i in range(1, 9))) if n >= at_least])
