"""What an environment is: a world that answers actions, given in words, with text and pictures.

A world is pure data: `step` takes a state and returns another one, both JSON values, and everything random in it comes
from the episode's seed. So an episode can be checkpointed as its actions and played again anywhere, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from megatron_glmv.data.synthetic.seeds import TRAIN, stream
from megatron_glmv.data.types import Json


@dataclass(frozen=True)
class Episode:
    """Which world, and which of its beginnings. Two splits share neither a random stream nor a template."""

    environment: str
    split: str = TRAIN
    seed: int = 0
    index: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    """What its environment knows more of; what is left out stands in its DEFAULTS."""

    def draws(self, part: str = "") -> np.random.Generator:
        """The random stream of a part of this episode."""
        return stream(self.seed, self.split, f"{self.environment}/{part}", self.index)


@dataclass(frozen=True)
class Observation:
    """What the model is shown next, pictures in front of the text."""

    text: str
    images: tuple[bytes, ...] = ()
    """Encoded, PNG or JPEG."""


@dataclass(frozen=True)
class Start:
    state: Json
    observation: Observation
    limit: int
    """Steps after which the episode is over."""


@dataclass(frozen=True)
class Step:
    state: Json
    observation: Observation
    reward: float = 0.0
    """Of the whole episode, in [0, 1]; read where it is done."""
    done: bool = False


class InvalidAction(ValueError):
    """An action that can't be read or isn't possible here. The model is told why, and the world stays as it is."""


class Environment(Protocol):
    """One kind of world. Its methods are pure functions."""

    NAME: ClassVar[str]
    DEFAULTS: ClassVar[Mapping[str, Any]]
    """Options with the values they have where an episode says nothing."""
    HELP: ClassVar[str]
    """Which actions there are, for a model whose action was none."""

    def reset(self, episode: Episode) -> Start:
        """Raises ValueError on an option's value that can't be."""

    def step(self, state: Json, action: str) -> Step:
        """`action` is untrusted text of limited length. Raises InvalidAction; whatever else it raises counts as one."""

    def expert(self, state: Json) -> str:
        """The best action."""

    def other(self, state: Json, rng: np.random.Generator) -> str:
        """A possible action that isn't the best one: for demonstrations with faults."""
