"""How far a reinforcement learning run has come: what a checkpoint holds beside tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_glmv.data.types import Json


@dataclass
class RLState:
    """Counted over all ranks since the beginning, across resumptions. Draws need no state: they are seeded by the
    step and by the number of the rollout."""

    step: int = 0
    tokens: int = 0
    """Trained tokens of answers."""
    samples: int = 0
    """Answers in trained groups."""
    rollouts: int = 0
    """Every generated answer, grading and discarded ones too; those of evaluation apart."""
    graded: int = 0
    """Of these, the ones that graded the pool before the first step."""
    evaluated: int = 0
    ratio: float = 1.0
    """Running mean of the expansion ratio."""
    curriculum: Json = field(default_factory=dict)
    pending: Json | None = None
    """Rollouts that the next step trains on, where they were made ahead (rl/ahead.py)."""

    def to_json(self) -> Json:
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Json) -> RLState:
        return cls(**value)
