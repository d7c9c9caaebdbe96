"""From judged groups to updated weights: packs, micro-batches, the gate before the first update, the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from megatron_glmv.config.rl import RLConfig
from megatron_glmv.config.schema import Config
from megatron_glmv.data.cost import Cost
from megatron_glmv.data.types import Json, PackedBatch
from megatron_glmv.model.replay import replay, take_differing
from megatron_glmv.parallel.groups import device_sum
from megatron_glmv.rl.advantage import group_advantages
from megatron_glmv.rl.batch import Answer, AnswerPacks, MiniBatch, Targets, lay_out_packs, targets_of
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.loss import MEASURED, Drift, PolicyLoss
from megatron_glmv.rl.prompts import RLPrompt
from megatron_glmv.rl.rolling import Roller
from megatron_glmv.rl.rollout.routes import routes_of, rows_of
from megatron_glmv.train.feed import Feed
from megatron_glmv.train.step import DivergedError, Trainer, unwrap

DRIFT_LIMITS = {"fp32": 1e-3, "bf16": 0.5, "fp8": 0.5}
"""Where `rl.drift_limit` is null. Sums in another order differ by 1e-5 in fp32; in bf16 a token whose router nearly
ties may change its probability by a third."""


STALE_LIMIT = 0.5
"""The same for answers of weights one step older, in any precision: a step that moves an answer further is none that
importance weights can correct. What the engine holds is then shown by comparing weights, and by the probe of
servers."""


class DriftError(DivergedError):
    """The engine and the training model give an answer different probabilities."""


class Learner:
    """Trains on groups. Every call is collective, and gives the same on every rank."""

    def __init__(
        self, config: Config, trainer: Trainer, roller: Roller, prompts: Mapping[str, RLPrompt], packs: AnswerPacks
    ) -> None:
        self.config, self.trainer, self.roller, self.prompts, self.packs = config, trainer, roller, prompts, packs
        groups = trainer.groups
        owner = dist.get_process_group_ranks(groups.model)[0] == dist.get_rank()
        self.feed = Feed(packs if owner else None, groups, trainer.device, 1)
        self.cost = Cost.of(config.model)
        topology = groups.topology
        self.multiple = topology.pipeline if topology.virtual_pipeline > 1 else 1
        self.rows = rows_of(config.model.text) if config.rl.routing_replay else None
        if self.rows is not None:
            replay([unwrap(chunk) for chunk in trainer.chunks], self.rows)

    @property
    def rl(self) -> RLConfig:
        return self.config.rl

    def learn(self, groups: Sequence[Group], *, stale: bool = False) -> Json:
        """`rl.updates` optimizer steps on the answers of these groups. Raises DriftError before the first. `stale`:
        they are answers of older weights, whose probabilities differ for that."""
        answers = [answers_of(group, by_deviation=self.rl.by_deviation) for group in groups]
        topology = self.trainer.groups.topology
        batches = [
            lay_out_packs(
                [answer for of_group in answers[update :: self.rl.updates] for answer in of_group],
                self.rl.loss_mean,
                self.config.data.pack_tokens,
                topology.data,
                self.multiple,
                self.cost,
            )
            for update in range(self.rl.updates)
        ]
        batches = [batch for batch in batches if batch.packs]
        targets: dict[tuple[str, ...], Targets] = {}
        for batch in batches:
            targets |= targets_of(batch, self.config.data.pack_tokens)
        policy = PolicyLoss(self.rl, targets, self.trainer.groups.cp)
        self._replay(batches)
        ready = [self._packs(batch) for batch in batches]
        worst = Drift("", 0.0)
        if len(batches) > 1:
            with torch.no_grad():
                for packs in ready:
                    self.trainer.forward_backward(packs, policy.remember, forward_only=True)
            worst = self._gate(policy, stale)
        totals = [0.0] * len(MEASURED)
        loss, norm = 0.0, 0.0
        for number, (batch, packs) in enumerate(zip(batches, ready, strict=True)):
            collected = self.trainer.accumulate(packs, policy, batch.weight, None)
            if number == 0 and len(batches) == 1:
                worst = self._gate(policy, stale)
            sums = self._sum(collected)
            loss += sums[0] / batch.weight / len(batches)
            totals = [a + b for a, b in zip(totals, sums, strict=True)]
            norm = max(norm, self.trainer.update())
        measured = dict(zip(MEASURED, totals, strict=True))
        replayed = self._differing()
        tokens = max(measured["tokens"], 1.0)
        return {
            "loss": loss,
            "grad_norm": norm,
            "updates": len(batches),
            "micro_batches": sum(len(packs) for packs in ready),
            "trained_tokens": round(measured["tokens"]),
            "entropy": measured["surprise"] / tokens,
            "clip_low": measured["clipped_low"] / tokens,
            "clip_high": measured["clipped_high"] / tokens,
            "drift_mean": measured["drift"] / tokens,
            "drift_worst": worst.mean,
            "importance": measured["importance"] / tokens,
            **replayed,
        }

    def _replay(self, batches: Sequence[MiniBatch]) -> None:
        """Has the trainer route every answer as it was rolled out."""
        if self.rows is not None:
            self.trainer.routes = routes_of(batches, self.config.data.pack_tokens, self.rows)

    def _differing(self) -> Json:
        """Share of tokens and layers in which the trained model's scores choose other experts than the rollout had."""
        if self.rows is None:
            return {}
        mine = take_differing([unwrap(chunk) for chunk in self.trainer.chunks])
        differing, replayed = device_sum(list(mine), None, self.trainer.device)
        return {"routes_differing": differing / max(replayed, 1.0)}

    def check(self, groups: Sequence[Group]) -> Drift:
        """The answer on which the engine and the trained model differ most, training none. Raises DriftError."""
        answers = [Answer(group, rollout, 1.0) for group in groups for rollout in group.rollouts]
        budget, topology = self.config.data.pack_tokens, self.trainer.groups.topology
        batch = lay_out_packs(answers, self.rl.loss_mean, budget, topology.data, self.multiple, self.cost)
        policy = PolicyLoss(self.rl, targets_of(batch, budget), self.trainer.groups.cp)
        self._replay([batch])
        with torch.no_grad():
            self.trainer.forward_backward(self._packs(batch), policy.remember, forward_only=True)
        return self._gate(policy)

    def _packs(self, batch: MiniBatch) -> list[PackedBatch]:
        """This replica's micro-batches, made by one of its ranks."""
        replica = self.trainer.groups.dp_rank
        if self.feed.loader is not None:
            answers = [
                batch.answers[i]
                for number in batch.of_replica[replica]
                if number < len(batch.packs)
                for i in batch.packs[number]
            ]
            needed = sorted({answer.group.prompt for answer in answers})
            prompts = dict(zip(needed, self.roller.build_all([self.prompts[id] for id in needed]), strict=True))
            turns = self.roller.turns([(self.prompts[a.group.prompt], a.rollout) for a in answers])
            by_key = {answer.key: of_answer for answer, of_answer in zip(answers, turns, strict=True)}
            self.packs.make(batch, replica, prompts, by_key)
        self.feed.micro_batches = len(batch.of_replica[replica])
        return self.feed.next_step()

    def _sum(self, collected: list[torch.Tensor]) -> list[float]:
        """Over micro-batches and over the ranks that hold different tokens."""
        counted = self.trainer.groups.last_stage and self.trainer.groups.tp.rank() == 0
        mine = torch.stack(collected).sum(dim=0).tolist() if counted and collected else [0.0] * len(MEASURED)
        return device_sum(mine, None, self.trainer.device)

    def _gate(self, policy: PolicyLoss, stale: bool = False) -> Drift:
        """The answer on which engine and training model differ most. Raises DriftError beyond the limit."""
        mine = max(policy.drifts, key=lambda drift: drift.mean, default=Drift("", 0.0))
        policy.drifts.clear()
        everyone = [mine] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        worst = max(everyone, key=lambda drift: drift.mean)
        usual = DRIFT_LIMITS[self.config.precision.name]
        limit = self.rl.drift_limit or (max(usual, STALE_LIMIT) if stale else usual)
        if not worst.mean <= limit:
            raise DriftError(
                f"engine and training model differ by {worst.mean:.3g} in the log-probabilities of answer "
                f"{worst.answer}, rl.drift_limit is {limit:g}: their weights, tokens or pixels are not the same"
            )
        return worst


def answers_of(group: Group, *, by_deviation: bool) -> list[Answer]:
    advantages = group_advantages(group.rewards, by_deviation=by_deviation)
    return [Answer(group, rollout, float(a)) for rollout, a in zip(group.rollouts, advantages, strict=True)]
