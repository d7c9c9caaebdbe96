"""The answers to one prompt and what they are worth."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_glmv.rl.rollout.contract import Rollout


@dataclass(frozen=True)
class Group:
    """A prompt rolled out and judged. The same object on every rank."""

    prompt: str
    domain: str
    task: str
    tokens: int
    """Of the prompt."""
    patches: int
    pictures: int
    """Images and temporal patches of videos."""
    rollouts: tuple[Rollout, ...]
    rewards: tuple[float, ...]
    verifiers: tuple[str, ...]
    """Who decided each reward."""
    judge_seconds: float
    error: str = ""
    """Why there is no answer; empty where there is."""

    @property
    def mean_reward(self) -> float:
        return sum(self.rewards) / len(self.rewards)
