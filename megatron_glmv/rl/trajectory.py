"""A conversation of several turns in the making, and laid out again to be trained on.

Nothing that was sampled is rewritten: the model's turns stay as they were generated, thinking and the token that ended
them included, though the chat template would drop the thinking of earlier turns. What is trained must be what was
sampled, and each token's probability that under what stood before it. The environment's turns follow as the template
has them; they carry no loss. Positions (M-RoPE) run on over the whole conversation.

Shapes: P tokens of the first prompt, T of a prompt, L behind the first prompt, M visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from megatron_glmv.inference.completion import STOP
from megatron_glmv.inference.engine import continued
from megatron_glmv.inference.prompts import Prompt
from megatron_glmv.rl.rollout.contract import Rollout
from megatron_glmv.rl.rollout.routes_text import joined_routes


def extended(prompt: Prompt, tokens: Sequence[int]) -> Prompt:
    """With tokens of text behind it."""
    ids = torch.cat([prompt.input_ids, torch.tensor(tokens, dtype=torch.int64)])
    return Prompt(ids, continued(prompt.position_ids, len(tokens)), prompt.visual_positions, prompt.media)


def joined(prompt: Prompt, turn: Prompt) -> Prompt:
    """With a turn behind it, whose positions count from 0 and go on from the highest in front of them."""
    return Prompt(
        torch.cat([prompt.input_ids, turn.input_ids]),
        torch.cat([prompt.position_ids, turn.position_ids + prompt.position_ids.max() + 1], dim=1),
        torch.cat([prompt.visual_positions, turn.visual_positions + len(prompt)]),
        (*prompt.media, *turn.media),
    )


def unrolled(prompt: Prompt, rollout: Rollout, turns: Sequence[Prompt] = ()) -> Prompt:
    """[P + L]: a prompt and all that came behind it; `turns` are the environment's. Raises ValueError where these are
    not what stands in the rollout."""
    if len(turns) != len(rollout.given):
        raise ValueError(f"{len(turns)} turns of the environment, the rollout has {len(rollout.given)}")
    whole, at = prompt, 0
    for (first, end), turn in zip(rollout.given, turns, strict=True):
        if tuple(turn.input_ids.tolist()) != rollout.token_ids[first:end]:
            raise ValueError(f"the environment's turn at token {first} is not the one that was seen")
        whole = joined(extended(whole, rollout.token_ids[at:first]), turn)
        at = end
    return extended(whole, rollout.token_ids[at:])


@dataclass
class Trajectory:
    """One rollout of an episode: the engine answers `prompt`, the environment answers that, and so on."""

    prompt: Prompt
    """All of the conversation up to the opened turn."""
    number: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    given: list[tuple[int, int]] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    finish: str = STOP
    error: str = ""
    patches: int = 0
    pictures: int = 0
    _routes: list[tuple[str, int, int]] = field(default_factory=list)
    """(experts of a turn's prompt and answer, their tokens, how many of these an earlier turn has)."""

    def hear(self, said: Rollout) -> None:
        """The engine's answer to `prompt`."""
        read = len(self.prompt) + len(said.token_ids) - 1
        self._routes.append((said.routes, read, self._routes[-1][1] if self._routes else 0))
        self.token_ids += said.token_ids
        self.logprobs += said.logprobs
        self.sampled += said.sampled
        self.responses.append(said.text)
        self.finish = said.finish
        self.prompt = extended(self.prompt, said.token_ids)

    def tell(self, turn: Prompt) -> None:
        """The environment's turn, and an opened answer."""
        start, size = len(self.token_ids), len(turn)
        self.given.append((start, start + size))
        self.token_ids += turn.input_ids.tolist()
        self.logprobs += [0.0] * size
        self.sampled += [False] * size
        self.patches += sum(medium.plan.grid.patches for medium in turn.media)
        self.pictures += sum(medium.plan.grid.t for medium in turn.media)
        self.prompt = joined(self.prompt, turn)

    def rollout(self, id: str) -> Rollout:
        return Rollout(
            prompt=id,
            number=self.number,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            sampled=tuple(self.sampled),
            text=self.responses[-1],
            finish=self.finish,
            media=tuple(medium.key for medium in self.prompt.media),
            error=self.error,
            routes=joined_routes(self._routes),
            responses=tuple(self.responses),
            given=tuple(self.given),
            patches=self.patches,
            pictures=self.pictures,
        )
