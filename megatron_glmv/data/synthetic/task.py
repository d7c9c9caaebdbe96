"""A task asks one question about a scene, knows the right answer, and knows what there is to choose from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

EASY, MEDIUM, HARD = "easy", "medium", "hard"
TIERS = (EASY, MEDIUM, HARD)

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class Ask:
    """A question as text, its answer, and the finite list that the answer is from; all choices are equally likely."""

    text: str
    answer: str
    choices: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.answer not in self.choices or len(set(self.choices)) != len(self.choices):
            raise ValueError(f"answer {self.answer!r} must be one of distinct choices {self.choices}")


@dataclass(frozen=True)
class Task(Generic[S]):
    """`ask` draws one question about a scene of type S; its randomness comes from the generator alone."""

    name: str
    tier: str
    ask: Callable[[S, np.random.Generator], Ask]


@dataclass(frozen=True)
class Turn:
    """One asked question, as conversations and evaluation lines carry it."""

    task: str
    tier: str
    text: str
    answer: str
    choices: tuple[str, ...]

    @property
    def chance(self) -> float:
        """Share right of one who picks among the choices at random."""
        return 1 / len(self.choices)


def turn(task: Task[S], scene: S, rng: np.random.Generator) -> Turn:
    asked = task.ask(scene, rng)
    return Turn(task.name, task.tier, asked.text, asked.answer, asked.choices)


def grade(response: str, answer: str) -> bool:
    """Exact: the response is the answer, blanks at its ends aside."""
    return response.strip() == answer


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One item, all equally likely."""
    return items[int(rng.integers(len(items)))]


def about(phrasings: Sequence[str], choices: Sequence[str], field: str) -> Callable[[Any, np.random.Generator], Ask]:
    """A question about one field of the scene, in one of several phrasings."""

    def ask(scene: Any, rng: np.random.Generator) -> Ask:
        return Ask(pick(rng, phrasings), str(getattr(scene, field)), tuple(choices))

    return ask
