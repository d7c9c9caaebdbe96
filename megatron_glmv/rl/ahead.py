"""Rollouts of the next iteration, generated while the present one is trained: one step off policy at most.

The iteration's prompts are drawn when they are rolled out, from the curriculum as the groups before have left it: the
same draws with and without. Only the weights differ: those of the step before. What waits to be trained is part of the
state, so that a run that was stopped goes on with the very rollouts that the unbroken one has.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

from megatron_glmv.data.types import Json
from megatron_glmv.rl.curriculum import Cell
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.rollout.contract import Rollout
from megatron_glmv.train.step import DivergedError


class StaleError(DivergedError):
    """Rollouts are older than `rl.staleness` allows."""


@dataclass(frozen=True)
class Rolled:
    """The rollouts of an iteration, and what they were drawn by."""

    step: int
    """The one that trains on them."""
    version: int
    """Optimizer's steps that the engine's weights had seen."""
    groups: tuple[Group, ...]
    failed: int
    """Prompts that could not be used."""
    before: tuple[int, ...]
    """Prompts in each tier when it was drawn."""
    weights: dict[Cell, float]
    applied: float
    """Expansion ratio."""
    trained: int
    """Groups that are to be trained."""

    @property
    def staleness(self) -> int:
        """Steps by which its weights are older than those that it trains; 0 on policy."""
        return self.step - 1 - self.version

    def to_json(self) -> Json:
        made = {field.name: getattr(self, field.name) for field in fields(self)}
        return made | {
            "groups": [asdict(group) for group in self.groups],
            "weights": [[list(cell), weight] for cell, weight in self.weights.items()],
        }

    @classmethod
    def from_json(cls, value: Json) -> Rolled:
        return cls(
            **value
            | {
                "groups": tuple(_group(group) for group in value["groups"]),
                "before": tuple(value["before"]),
                "weights": {tuple(cell): weight for cell, weight in value["weights"]},
            }
        )


def _group(value: Json) -> Group:
    rollouts = tuple(Rollout(**_tuples(rollout)) for rollout in value["rollouts"])
    return Group(**_tuples(value) | {"rollouts": rollouts})


def _tuples(value: Json) -> Json:
    return {key: _tuple(part) for key, part in value.items()}


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def check_age(rolled: Rolled, bound: int) -> None:
    """Raises StaleError."""
    if not 0 <= rolled.staleness <= bound:
        raise StaleError(
            f"step {rolled.step} would train on rollouts of the weights after step {rolled.version}, "
            f"{rolled.staleness} steps old; rl.staleness is {bound}"
        )


class InBackground:
    """One thing at a time, in a thread: rank-local work alone, no collectives."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._running: Future[Any] | None = None

    def start(self, work: Callable[[], Any]) -> None:
        if self._running is not None:
            raise RuntimeError("rollouts ahead are running already")
        self._running = self._pool.submit(work)

    def result(self) -> Any:
        """What it made; waits for it."""
        assert self._running is not None
        running, self._running = self._running, None
        return running.result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
