"""What any rollout engine is asked and gives back: one shape for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_glmv.data.template import GLM45V
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.inference.prompts import Prompt


@dataclass(frozen=True)
class Request:
    """A prompt to be answered once for each of `numbers`."""

    id: str
    prompt: Prompt
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class ForceAnswer:
    """After `budget` tokens without the end of the thinking, these tokens are inserted (arXiv 2507.01006, section 5.3:
    the model then gives an answer and is rewarded for it)."""

    budget: int
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: str, budget: int) -> ForceAnswer:
        opening = tokenizer.encode("\n") if template == GLM45V else [tokenizer.special("<answer>")]
        return cls(budget, (tokenizer.special("</think>"), *opening))


@dataclass(frozen=True)
class Rollout:
    """One answer to a prompt. L tokens, those included that were inserted and the one that ended it."""

    prompt: str
    """Id of the prompt."""
    number: int
    """Which rollout of the run this is; seeds its draws, so that an answer doesn't depend on who shares its batch."""
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """[L] natural logarithm of the engine's probability of each token, at temperature 1 and top-p 1. Of inserted ones
    servers say nothing: 0."""
    sampled: tuple[bool, ...]
    """[L] False where a token was inserted (force answering): it carries no loss."""
    text: str
    """Without the token that ended it; of several turns the last one's."""
    finish: str
    """stop, length or failed (inference/completion.py)."""
    media: tuple[str, ...] = ()
    """Key of each medium of the prompt, and of later turns: hash of its bytes and how it was seen."""
    error: str = ""
    routes: str = ""
    """Experts of each token that was read, base64 of [P + L - 1, layers with experts, K], P tokens of the prompt
    (routes.py). Empty where none were recorded."""
    responses: tuple[str, ...] = ()
    """What the model wrote in each turn of an episode, thinking included; empty where there is but one turn."""
    given: tuple[tuple[int, int], ...] = ()
    """(first, behind the last) of `token_ids` that are the environment's turns, with what opens the answer to them:
    they are not sampled."""
    patches: int = 0
    """Of the media in `given`."""
    pictures: int = 0
    """Images and temporal patches of videos in `given`."""

    @property
    def forced(self) -> bool:
        """Whether tokens were inserted into an answer."""
        return not all(self.own)

    @property
    def own(self) -> tuple[bool, ...]:
        """`sampled` of the model's turns alone."""
        of_others = {i for first, end in self.given for i in range(first, end)}
        return tuple(s for i, s in enumerate(self.sampled) if i not in of_others)


class RolloutSource(Protocol):
    """An engine, in this process or behind HTTP."""

    tokenizer: Tokenizer

    def roll(
        self,
        requests: Sequence[Request],
        max_new_tokens: int,
        seed: int,
        *,
        greedy: bool = False,
        force: ForceAnswer | None = None,
        batch_size: int = 256,
    ) -> list[Rollout]:
        """Answers in the order of the requests and their numbers; every request has equally many. A prompt whose media
        can't be used has answers that are `failed`, without tokens."""


class EngineWeights(Protocol):
    """Keeps an engine at the trained weights. Every call is collective."""

    def sync(self) -> None:
        """Raises where it can't be done."""

    def verify(self) -> None:
        """Raises where the engine holds other weights."""
