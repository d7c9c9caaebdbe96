"""Rollouts of several turns: the engine and the environments by turns, all episodes one turn at a time.

After each turn the engine is given the whole conversation anew, whichever engine it is. The one in process could keep
its keys and values only for rows that go on at the same length (its cache has one offset for a batch), and rows part
after the first turn; it reads a conversation in one pass, and has its pictures' features still. Servers find the
beginning in their prefix cache.

`max_new_tokens` and the thinking budget hold for each turn. An episode ends where its environment says so, at its
limit of steps, behind a turn that was cut at `max_new_tokens` (what it says is still acted on), or where another
turn might not fit into `data.pack_tokens`; what is not done then is worth 0.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_glmv.config.rl import RLConfig
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.types import IMAGE, Json
from megatron_glmv.inference.completion import FAILED, LENGTH
from megatron_glmv.inference.prompts import Prompt, PromptBuilder
from megatron_glmv.inference.sampling import seed_of
from megatron_glmv.rl.environments.referee import Moment, Referee
from megatron_glmv.rl.environments.types import Episode, Observation
from megatron_glmv.rl.rollout.contract import ForceAnswer, Request, Rollout, RolloutSource
from megatron_glmv.rl.trajectory import Trajectory

USER = "<|user|>"
"""The role of an environment's turns."""


@dataclass(frozen=True)
class Played:
    """The rollouts of one episode and what they are worth."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    rewards: tuple[float, ...]
    seconds: float
    """Wall time of the environment, this episode's share."""


class Episodes:
    """Plays episodes, and lays their turns out again."""

    def __init__(
        self,
        config: RLConfig,
        engine: RolloutSource,
        builder: PromptBuilder,
        referee: Referee,
        most_tokens: int,
        force: ForceAnswer | None,
    ) -> None:
        self.config, self.engine, self.builder, self.referee = config, engine, builder, referee
        self.most_tokens, self.force = most_tokens, force
        self._role = engine.tokenizer.special(USER)

    def first(self, id: str, start: Moment) -> Prompt:
        """What is seen first, up to the opened answer. Raises SampleError."""
        if start.error:
            raise SampleError(id, start.error)
        message = _message(start.observation)
        media = [self.builder.files.hold(IMAGE, image) for image in start.observation.images]
        conversation: Json = {"id": id, "messages": [message]}
        return self.builder.of_media(conversation, media, thinking=self.config.thinking)

    def play(
        self,
        asked: Mapping[int, tuple[str, Moment, Prompt]],
        numbers: Mapping[int, Sequence[int]],
        seed: int,
        *,
        greedy: bool = False,
    ) -> dict[int, Played | str]:
        """By place: rollouts of (id, beginning, first prompt), equally many of each, or why there are none."""
        requests = [Request(id, prompt, tuple(numbers[i])) for i, (id, _, prompt) in asked.items()]
        said = iter(self._roll(requests, seed, greedy))
        made: dict[int, Played | str] = {}
        all_of: dict[int, list[tuple[Trajectory, Moment]]] = {}
        for i, (_, start, prompt) in asked.items():
            answers = [next(said) for _ in numbers[i]]
            if answers[0].finish == FAILED:
                made[i] = answers[0].error
                continue
            all_of[i] = [(Trajectory(prompt, answer.number), start) for answer in answers]
            for (trajectory, _), answer in zip(all_of[i], answers, strict=True):
                trajectory.hear(answer)
        seconds = self._go_on(all_of, {i: id for i, (id, _, _) in asked.items()}, seed, greedy)
        for i, played in all_of.items():
            id, _, prompt = asked[i]
            rollouts = tuple(trajectory.rollout(id) for trajectory, _ in played)
            made[i] = Played(prompt, rollouts, tuple(moment.reward for _, moment in played), seconds / len(all_of))
        return made

    def _go_on(
        self, all_of: dict[int, list[tuple[Trajectory, Moment]]], ids: Mapping[int, str], seed: int, greedy: bool
    ) -> float:
        """Plays to the end, in place. Seconds that the environments took."""
        live = [(i, place) for i, played in all_of.items() for place in range(len(played))]
        seconds, turn = 0.0, 0
        while live:
            turn += 1
            began = time.perf_counter()
            here = [all_of[i][place] for i, place in live]
            after = self.referee.step([(moment, trajectory.responses[-1]) for trajectory, moment in here])
            seconds += time.perf_counter() - began
            going = []
            for (i, place), (trajectory, _), moment in zip(live, here, after, strict=True):
                trajectory.error = moment.error
                all_of[i][place] = (trajectory, moment)
                if not moment.done and trajectory.finish != LENGTH and self._tell(ids[i], trajectory, moment):
                    going.append((i, place))
            told = [all_of[i][place][0] for i, place in going]
            requests = [
                Request(ids[i], trajectory.prompt, (trajectory.number,))
                for (i, _), trajectory in zip(going, told, strict=True)
            ]
            live = []
            answers = self._roll(requests, seed_of(seed, -turn), greedy)
            for at, trajectory, answer in zip(going, told, answers, strict=True):
                if answer.finish == FAILED:  # looked at before, and yet it does not decode
                    raise SampleError(ids[at[0]], answer.error)
                trajectory.hear(answer)
                live.append(at)
        return seconds

    def _roll(self, requests: Sequence[Request], seed: int, greedy: bool) -> list[Rollout]:
        most, size = self.config.max_new_tokens, self.config.batch_size
        return self.engine.roll(requests, most, seed, greedy=greedy, force=self.force, batch_size=size)

    def _tell(self, id: str, trajectory: Trajectory, moment: Moment) -> bool:
        """Whether there is room for another turn; then it is opened."""
        turn = self._turn(id, moment.observation, trajectory.token_ids[-1])
        if len(trajectory.prompt) + len(turn) + self.config.max_new_tokens > self.most_tokens:
            trajectory.finish = LENGTH
            return False
        trajectory.tell(turn)
        return True

    def _turn(self, id: str, observation: Observation, last: int) -> Prompt:
        """`last`: the token that ended the answer."""
        media = [self.builder.files.hold(IMAGE, image) for image in observation.images]
        said = last == self._role
        return self.builder.turn(_message(observation), media, thinking=self.config.thinking, role_said=said, key=id)

    def turns(self, played: Sequence[tuple[str, Episode, Rollout]]) -> list[tuple[Prompt, ...]]:
        """The environment's turns of each rollout, played again from what the model wrote. Raises SampleError."""
        replayed = self.referee.replay([(e, r.responses[: len(r.given)]) for _, e, r in played])
        made = []
        for (id, _, rollout), moments in zip(played, replayed, strict=True):
            broken = next((moment.error for moment in moments if moment.error), "")
            if broken:
                raise SampleError(id, broken)
            made.append(
                tuple(
                    self._turn(id, moment.observation, rollout.token_ids[first - 1])
                    for moment, (first, _) in zip(moments[1:], rollout.given, strict=True)
                )
            )
        return made


def _message(observation: Observation) -> Json:
    pictures: list[Json] = [{"type": IMAGE, IMAGE: ""} for _ in observation.images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": observation.text}]}
