"""What a domain makes: media, and questions about them with exact answers.

A domain is a tuple of kinds of scenes. `problem()` is a pure function of (domain, tier, split, seed, index, scale).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from megatron_glmv.data.synthetic.canvas import Pixels
from megatron_glmv.data.synthetic.domains.drawing import Style, style_of
from megatron_glmv.data.synthetic.domains.lattice import Template, choose
from megatron_glmv.data.synthetic.seeds import stream

TIERS = (0, 1, 2, 3)
SIDES = (112, 112, 224, 448)
"""Pixels along a picture of each tier at scale 1: 16, 16, 64 and 256 language tokens."""
OPENERS = ("", "please answer: ", "now tell me: ", "question: ")

T = TypeVar("T")


@dataclass(frozen=True)
class Medium:
    kind: str
    """types.IMAGE or types.VIDEO."""
    pixels: Pixels
    """[h, w, 3] of an image, [F, h, w, 3] of a video."""


@dataclass(frozen=True)
class Ask:
    """One question about a scene."""

    task: str
    question: str
    answer: str
    steps: tuple[str, ...]
    """The chain of thought, a sentence each; the last one names the answer."""
    choices: tuple[str, ...]
    """The finite list that the answer is from, all equally likely; empty where the answer is open."""
    chance: float
    """Share right of the best answer given without looking: 1 / len(choices), or what the task states."""
    work: int
    """How many drawn elements have to be read or compared to answer, and steps made: the measure of tiers."""
    wording: Template
    """(opener, phrasing)."""


@dataclass(frozen=True)
class Problem:
    """One item of a domain, with nothing encoded yet."""

    domain: str
    """The name of its verifier, too."""
    tier: int
    media: tuple[Medium, ...]
    asks: tuple[Ask, ...]
    """Several questions about the same media, in random order."""
    style: Template
    """(font, theme)."""
    scene: Any
    """What was drawn, for tests that read it back from the pixels."""


@dataclass
class Draw:
    """Everything that a generator may depend on."""

    rng: np.random.Generator
    tier: int
    split: str
    scale: int = 1
    style: Style = field(init=False)

    def __post_init__(self) -> None:
        self.style = style_of(choose(self.rng, self.split, Style.SIZES), plain=self.tier == 0)

    @property
    def side(self) -> int:
        """Pixels along a picture of this tier."""
        return SIDES[self.tier] * self.scale

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items in random order."""
        return [items[int(i)] for i in self.rng.permutation(len(items))[:count]]

    def between(self, low: int, high: int) -> int:
        """A whole number, `high` included."""
        return int(self.rng.integers(low, high + 1))

    def ask(
        self,
        task: str,
        phrasings: Sequence[str],
        answer: object,
        steps: Sequence[str],
        *,
        choices: Sequence[object] = (),
        chance: float | None = None,
        work: int,
        **values: object,
    ) -> Ask:
        """One question in a wording of the split; `values` fill the phrasings. Raises ValueError where the answer is
        not among the choices, or neither choices nor a chance are given."""
        listed, said = tuple(map(str, choices)), str(answer)
        if listed and (said not in listed or len(set(listed)) != len(listed)):
            raise ValueError(f"{task}: answer {said!r} must be one of distinct choices {listed}")
        if not listed and chance is None:
            raise ValueError(f"{task}: an open answer needs its chance level")
        wording = choose(self.rng, self.split, (len(OPENERS), len(phrasings)))
        question = OPENERS[wording[0]] + phrasings[wording[1]].format(**values)
        level = 1 / len(listed) if chance is None else chance
        return Ask(task, question, said, tuple(steps), listed, level, work, wording)


@dataclass(frozen=True)
class Kind:
    """One kind of scene: `draw` makes it, each of `asks` asks one question about it. A scene has `media`."""

    name: str
    draw: Callable[[Draw], Any]
    asks: tuple[Callable[[Any, Draw], Ask], ...]
    tiers: tuple[int, ...] = TIERS


@dataclass(frozen=True)
class Domain:
    name: str
    kinds: tuple[Kind, ...]

    def at(self, tier: int) -> tuple[Kind, ...]:
        return tuple(kind for kind in self.kinds if tier in kind.tiers)


def problem(domain: Domain, tier: int, split: str, seed: int, index: int, scale: int = 1) -> Problem:
    """Item `index` of a domain at a tier: the same in any process. Raises ValueError on an unknown tier or split."""
    if tier not in TIERS or scale < 1:
        raise ValueError(f"tier {tier} must be one of {TIERS}, and scale {scale} at least 1")
    draw = Draw(stream(seed, split, f"{domain.name}-{tier}", index), tier, split, scale)
    kind = draw.pick(domain.at(tier))
    scene = kind.draw(draw)
    asks = tuple(kind.asks[int(i)](scene, draw) for i in draw.rng.permutation(len(kind.asks)))
    return Problem(domain.name, tier, tuple(scene.media), asks, draw.style.template, scene)
