"""Prompts to judged groups, spread over all ranks: each rolls out its share with its own copy of the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist

from megatron_glmv.config.rl import RLConfig
from megatron_glmv.data.errors import SampleError
from megatron_glmv.inference.completion import FAILED
from megatron_glmv.inference.prompts import Prompt, PromptBuilder
from megatron_glmv.rl.environments.referee import Moment, Referee
from megatron_glmv.rl.episodes import Episodes
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.prompts import RLPrompt
from megatron_glmv.rl.rewards.registry import Judge
from megatron_glmv.rl.rewards.types import Item
from megatron_glmv.rl.rollout.contract import ForceAnswer, Request, Rollout, RolloutSource

HELD_OUT_SEED = 20250701
"""Two runs are evaluated with the same draws."""


class Judged(NamedTuple):
    """The verdicts over a group. `failure`: why one of them is none; empty where all are there."""

    rewards: tuple[float, ...]
    verifiers: tuple[str, ...]
    seconds: float
    failure: str = ""


class Roller:
    """Rolls out and judges. Collective over the world; every rank gets all groups, in the order asked."""

    def __init__(
        self,
        config: RLConfig,
        engine: RolloutSource,
        builder: PromptBuilder,
        judge: Judge,
        seed: int,
        most_tokens: int,
    ) -> None:
        self.config, self.engine, self.builder, self.judge = config, engine, builder, judge
        self.seed, self.most_tokens = seed, most_tokens
        self.force: ForceAnswer | None = None
        if config.thinking and config.thinking_budget is not None:
            template = builder.files.data.template
            self.force = ForceAnswer.of(engine.tokenizer, template, config.thinking_budget)
        limits = config.environment
        self._referee = Referee(workers=limits.workers, seconds=limits.seconds, most_steps=limits.turns)
        self.episodes = Episodes(config, engine, builder, self._referee, most_tokens, self.force)

    def close(self) -> None:
        """Ends the processes of environments; the next episode would start new ones."""
        self._referee.close()

    def roll(
        self,
        prompts: Sequence[RLPrompt],
        first: int,
        each: int,
        *,
        greedy: bool = False,
        held_out: bool = False,
        judged: bool = True,
    ) -> list[Group]:
        """`each` answers to every prompt; the rollouts are numbered from `first`, which seeds their draws. A prompt
        that can't be used has a group without answers. held_out: the draws of every evaluation, and true rewards where
        a control draws them. judged=False: every reward is 0."""
        mine = self.mine(prompts, first, each, greedy=greedy, held_out=held_out, judged=judged)
        return self.gather(mine, len(prompts))

    def mine(
        self,
        prompts: Sequence[RLPrompt],
        first: int,
        each: int,
        *,
        greedy: bool = False,
        held_out: bool = False,
        judged: bool = True,
    ) -> dict[int, Group]:
        """This rank's share of `roll`, by place; not collective."""
        rank, world = dist.get_rank(), dist.get_world_size()
        share = {i: prompts[i] for i in range(rank, len(prompts), world)}
        return self._share(share, first, each, greedy, held_out, judged)

    def gather(self, mine: Mapping[int, Group], count: int) -> list[Group]:
        """The groups of all ranks in their order. Collective."""
        everyone: list[Mapping[int, Group]] = [mine]
        if dist.get_world_size() > 1:
            everyone = [{}] * dist.get_world_size()
            dist.all_gather_object(everyone, mine)
        found = {i: group for part in everyone for i, group in part.items()}
        return [found[i] for i in range(count)]

    def build_all(self, prompts: Sequence[RLPrompt]) -> list[Prompt]:
        """Raises SampleError where one can't be laid out, or is too long for a pack with its answer."""
        starts = self._starts(dict(enumerate(prompts)))
        return [self._build(prompt, starts.get(i)) for i, prompt in enumerate(prompts)]

    def turns(self, played: Sequence[tuple[RLPrompt, Rollout]]) -> list[tuple[Prompt, ...]]:
        """What environments said in each rollout; nothing where there is none. Raises SampleError."""
        of_episodes = [(p.id, p.episode, r) for p, r in played if p.episode is not None]
        found = iter(self.episodes.turns(of_episodes))
        return [next(found) if prompt.episode is not None else () for prompt, _ in played]

    def _starts(self, prompts: Mapping[int, RLPrompt]) -> dict[int, Moment]:
        """The beginnings of those that are episodes."""
        episodes = {i: prompt.episode for i, prompt in prompts.items() if prompt.episode is not None}
        return dict(zip(episodes, self._referee.reset(list(episodes.values())), strict=True))

    def _build(self, prompt: RLPrompt, start: Moment | None) -> Prompt:
        if start is None:
            built = self.builder.build(prompt.conversation, thinking=self.config.thinking)
        else:
            built = self.episodes.first(prompt.id, start)
        if len(built) + self.config.max_new_tokens > self.most_tokens:
            raise SampleError(
                prompt.id, f"{len(built)} tokens and an answer are more than data.pack_tokens={self.most_tokens}"
            )
        return built

    def _share(
        self, prompts: Mapping[int, RLPrompt], first: int, each: int, greedy: bool, held_out: bool, judged: bool
    ) -> dict[int, Group]:
        built: dict[int, Prompt] = {}
        made: dict[int, Group] = {}
        starts = self._starts(prompts)
        for i, prompt in prompts.items():
            try:
                built[i] = self._build(prompt, starts.get(i))
            except SampleError as error:
                made[i] = _empty(prompt, error.reason)
        numbers = {i: tuple(range(first + i * each, first + (i + 1) * each)) for i in built}
        asked = [i for i in built if i not in starts]
        seed = HELD_OUT_SEED if held_out else self.seed
        rollouts = self.engine.roll(
            [Request(prompts[i].id, built[i], numbers[i]) for i in asked],
            self.config.max_new_tokens,
            seed,
            greedy=greedy,
            force=self.force,
            batch_size=self.config.batch_size,
        )
        by_place = {i: rollouts[n * each : (n + 1) * each] for n, i in enumerate(asked)}
        for i, answers in by_place.items():
            if answers[0].finish == FAILED:
                made[i] = _empty(prompts[i], answers[0].error)
        usable = {i: answers for i, answers in by_place.items() if i not in made}
        at_random = self.config.random_rewards and not held_out
        found = (
            self._judge(usable, prompts, at_random)
            if judged
            else dict.fromkeys(usable, Judged((0.0,) * each, ("",) * each, 0.0))
        )
        for i, (rewards, verifiers, seconds, failure) in found.items():
            if failure:
                made[i] = _empty(prompts[i], failure)
                continue
            made[i] = _group(prompts[i], built[i], by_place[i], rewards, verifiers, seconds)
        episodes = {i: (prompts[i].id, starts[i], built[i]) for i in built if i in starts}
        for i, played in self.episodes.play(episodes, numbers, seed, greedy=greedy).items():
            if isinstance(played, str):
                made[i] = _empty(prompts[i], played)
                continue
            rewards = played.rewards if judged else (0.0,) * each
            if judged and at_random:
                rewards = tuple(random_reward(self.seed, rollout.number) for rollout in played.rollouts)
            names = (starts[i].environment,) * each
            made[i] = _group(prompts[i], built[i], played.rollouts, rewards, names, played.seconds)
        return made

    def _judge(
        self, answers: Mapping[int, Sequence[Rollout]], prompts: Mapping[int, RLPrompt], at_random: bool
    ) -> dict[int, Judged]:
        items = [
            Item(prompts[i].verifier, rollout.text, prompts[i].answer, prompts[i].extra)
            for i, rollouts in answers.items()
            for rollout in rollouts
        ]
        verdicts = iter(self.judge.judge(items) if items else [])
        found = {}
        for i, rollouts in answers.items():
            of_group = [next(verdicts) for _ in rollouts]
            rewards = tuple(verdict.reward for verdict in of_group)
            if at_random:
                rewards = tuple(random_reward(self.seed, rollout.number) for rollout in rollouts)
            # one answer that nobody could judge: the others can't be compared with it, and 0 would be a lie
            failure = next((v.reason for v in of_group if v.failed), "")
            verifiers, seconds = tuple(v.verifier for v in of_group), sum(v.seconds for v in of_group)
            found[i] = Judged(rewards, verifiers, seconds, failure)
        return found


def _empty(prompt: RLPrompt, error: str) -> Group:
    place = prompt.place
    return Group(prompt.id, place.domain, place.task, 0, 0, 0, (), (), (), 0.0, error)


def _group(
    prompt: RLPrompt,
    built: Prompt,
    rollouts: Sequence[Rollout],
    rewards: tuple[float, ...],
    verifiers: tuple[str, ...],
    seconds: float,
) -> Group:
    grids = [medium.plan.grid for medium in built.media]
    return replace(
        _empty(prompt, ""),
        tokens=len(built),
        patches=sum(grid.patches for grid in grids),
        pictures=sum(grid.t for grid in grids),
        rollouts=tuple(rollouts),
        rewards=rewards,
        verifiers=verifiers,
        judge_seconds=seconds,
    )


def random_reward(seed: int, number: int) -> float:
    """0 or 1 with equal chance, a function of the seed and the rollout's number."""
    return float(hashlib.sha256(f"reward {seed} {number}".encode()).digest()[0] & 1)


def held_out(roller: Roller, prompts: Sequence[RLPrompt], samples: int) -> dict[str, float]:
    """`heldout_reward` (sampled as in training, `samples` answers each, the same draws at every evaluation),
    `heldout_greedy`, `heldout_pass` (any of the samples at least half right), and the sampled reward by domain."""
    sampled = [g for g in roller.roll(prompts, 0, samples, held_out=True) if g.rewards]
    greedy = [g for g in roller.roll(prompts, 0, 1, greedy=True, held_out=True) if g.rewards]
    if not sampled or not greedy:
        return {}
    found: dict[str, Any] = {
        "heldout_reward": float(np.mean([g.mean_reward for g in sampled])),
        "heldout_greedy": float(np.mean([g.mean_reward for g in greedy])),
        f"heldout_pass@{samples}": float(np.mean([max(g.rewards) >= 0.5 for g in sampled])),
    }
    for domain in sorted({g.domain for g in sampled}):
        found[f"heldout_reward/{domain}"] = float(np.mean([g.mean_reward for g in sampled if g.domain == domain]))
    return found
