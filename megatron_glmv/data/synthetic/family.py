"""A family draws scenes of one kind and says which questions are asked about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_glmv.data.synthetic.canvas import Pixels
from megatron_glmv.data.synthetic.task import Task, Turn, turn

TEXT = "text"
"""Domain of a family that shows nothing; the others are types.IMAGE and types.VIDEO."""


@dataclass(frozen=True)
class Item:
    """One drawn sample before anything is encoded."""

    pixels: Pixels | None
    """[h, w, 3] of an image, [F, h, w, 3] of a video, None of text."""
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Family:
    """`asked` holds the tasks of one conversation; a task may be asked more than once."""

    name: str
    domain: str
    draw: Callable[[np.random.Generator], Any]
    asked: tuple[Task[Any], ...]

    @property
    def tasks(self) -> tuple[Task[Any], ...]:
        """Each task once, in the order of `asked`."""
        return tuple(dict.fromkeys(self.asked))

    def item(self, rng: np.random.Generator) -> Item:
        """A scene and its questions in random order."""
        scene = self.draw(rng)
        order = rng.permutation(len(self.asked))
        return Item(getattr(scene, "pixels", None), tuple(turn(self.asked[i], scene, rng) for i in order))
