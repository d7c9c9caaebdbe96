"""The table of stand-ins: each says which assumption of megatron-core it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StandIn:
    """Something put in place of `target` where there is no CUDA."""

    target: str
    """Dotted name of what is replaced."""
    value: Any
    answers: str
    """The files of megatron-core (relative to megatron/core/) and what they take for granted."""


def nothing() -> Callable[..., None]:
    """A new function each time: torch._dynamo, imported by every optimizer, refuses one object under two names."""
    return lambda *_, **__: None
