"""The next token from logits: the likeliest, or one drawn by temperature and top-p. Shapes: R rows, W vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_glmv.config.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0: always the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn from (arXiv 1904.09751)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError("temperature", self.temperature, "must not be negative", "0 takes the likeliest token")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", self.top_p, "must be above 0 and at most 1", "1 draws from all tokens")


GREEDY = Sampling()


class Sampler:
    """A generator for each prompt, seeded by its number: what it draws does not depend on who shares the batch."""

    def __init__(self, sampling: Sampling, numbers: Sequence[int]) -> None:
        self.sampling = sampling
        self._generators = [torch.Generator().manual_seed(seed_of(sampling.seed, number)) for number in numbers]

    def pick(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """logits [R, W] fp32 of the prompts `rows` -> [R] int64 on the CPU."""
        if self.sampling.temperature == 0:
            return logits.argmax(dim=-1).cpu()
        weights = nucleus(torch.softmax(logits / self.sampling.temperature, dim=-1), self.sampling.top_p).cpu()
        drawn = [torch.multinomial(weights[i], 1, generator=self._generators[row]) for i, row in enumerate(rows)]
        return torch.cat(drawn)


def seed_of(seed: int, number: int) -> int:
    """32 bits of both: torch's CPU generator drops all above them, so that a shifted seed would be no seed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """[R, W] with all but the likeliest tokens set to 0: kept are those before which the sum is less than top_p."""
    ordered, index = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probabilities).scatter(-1, index, ordered.masked_fill(before >= top_p, 0.0))
