"""What any rollout engine gives back: one shape for all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rollout:
    """One answer to a prompt. L tokens, those included that were inserted and the one that ended it."""

    prompt: str
    """Id of the prompt."""
    number: int
    """Which rollout of the run this is; seeds its draws, so that an answer doesn't depend on who shares its batch."""
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """[L] natural logarithm of the engine's probability of each token, at temperature 1 and top-p 1."""
    sampled: tuple[bool, ...]
    """[L] False where a token was inserted (force answering): it carries no loss."""
    text: str
    """Without the token that ended it."""
    finish: str
    """stop, length or failed (inference/completion.py)."""
    media: tuple[str, ...] = ()
    """Key of each medium of the prompt: hash of its bytes and how it was seen."""
    error: str = ""

    @property
    def forced(self) -> bool:
        return not all(self.sampled)
