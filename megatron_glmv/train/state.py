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
    best_loss: float | None = None
    """Lowest validation loss so far, where that is asked for (checkpoint.best)."""

    def to_json(self) -> Json:
        return {
            "step": self.step,
            "tokens": self.tokens,
            "samples": self.samples,
            "loader": self.loader,
            "best_loss": self.best_loss,
        }

    @classmethod
    def from_json(cls, value: Json) -> TrainState:
        return cls(value["step"], value["tokens"], value["samples"], value["loader"], value.get("best_loss"))

    def improved(self, loss: float | None) -> bool:
        """Takes note of a validation loss; True where it is the lowest so far."""
        if loss is None or (self.best_loss is not None and loss >= self.best_loss):
            return False
        self.best_loss = loss
        return True
