"""How far a run has come: what a checkpoint holds beside tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_glmv.data.types import Json


@dataclass
class TrainState:
    """Counted over all ranks since the beginning of the run, across resumptions."""

    step: int = 0
    tokens: int = 0
    """Tokens seen, padding not counted."""
    samples: int = 0
    loader: Json = field(default_factory=dict)
    """Position in the data, integers only."""

    def to_json(self) -> Json:
        return {"step": self.step, "tokens": self.tokens, "samples": self.samples, "loader": self.loader}

    @classmethod
    def from_json(cls, value: Json) -> TrainState:
        return cls(value["step"], value["tokens"], value["samples"], value["loader"])
