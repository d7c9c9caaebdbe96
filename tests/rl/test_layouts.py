"""One policy step under each layout gives the single process's loss, statistics and gradient norm.

Derivation. The step minimises sum_i w_i l_i / N over the trained tokens of all answers, N the answers of the batch;
neither depends on which rank computes a token, nor on how answers are packed. In fp32 results differ by the order of
summation, 1e-7 to 1e-6; the bound is 1e-5 relative, on quantities that are far from 0 (the loss itself is made so by
old log-probabilities that differ from the present ones), or 1e-6: the loss is what is left of 16 answers of about 1.
Each layout also takes its rollout weights from its own shards and compares them bit by bit, so that one wrong offset
fails here. With replayed experts, those of each token are drawn at random: an order that is not kept shows.

Not covered: media in the packs (tests/dist hold the encoder to one process), bf16.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.config.rl import RLConfig
from megatron_glmv.config.schema import Config
from megatron_glmv.data.collate import Sample, collate
from megatron_glmv.data.cost import Cost
from megatron_glmv.inference.prompts import Prompt
from megatron_glmv.model.replay import replay
from megatron_glmv.parallel.topology import Topology
from megatron_glmv.rl.advantage import response_weights
from megatron_glmv.rl.batch import MiniBatch, answer_layout, empty_pack, lay_out_packs, targets_of
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.learner import answers_of
from megatron_glmv.rl.loss import MEASURED, PolicyLoss
from megatron_glmv.rl.rollout.contract import Rollout
from megatron_glmv.rl.rollout.routes import routes_of, rows_of
from megatron_glmv.rl.rollout.routes_text import packed

LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2": {"tensor": 2},
    "PP2": {"pipeline": 2},
    "EP2": {"data": 2, "expert": 2},
    "CP2": {"context": 2},
    "DP2": {"data": 2},
}


def made_up_groups() -> tuple[list[Group], dict[str, Prompt]]:
    """Five prompts with four answers each of 2 to 9 tokens; one group without advantage; one inserted token."""
    noise, experts = np.random.default_rng(3), np.random.default_rng(4)
    rows = rows_of(tiny.TEXT)
    assert rows is not None
    groups, prompts = [], {}
    for n in range(5):
        length = 9 + 2 * n
        ids = torch.from_numpy(noise.integers(0, tiny.VOCAB, length))
        ramp = torch.arange(length).expand(3, length)
        prompts[f"p{n}"] = Prompt(ids, ramp, torch.zeros(0, dtype=torch.int64), ())
        rollouts = []
        for k in range(4):
            size = int(noise.integers(2, 10))
            said = tuple(noise.integers(0, tiny.VOCAB, size).tolist())
            guess = tuple((-4.85 + 0.1 * noise.standard_normal(size)).tolist())
            sampled = tuple(j != 1 or k != 0 for j in range(size))
            chosen = experts.permuted(np.tile(np.arange(rows.experts), (length + size - 1, rows.layers, 1)), axis=2)
            routes = packed([chosen[..., : rows.topk].astype(np.int16)], len(chosen))
            rollouts.append(Rollout(f"p{n}", 4 * n + k, said, guess, sampled, "", "stop", routes=routes))
        rewards = (1.0, 1.0, 1.0, 1.0) if n == 2 else tuple(float(k <= n % 3) for k in range(4))
        groups.append(Group(f"p{n}", "d", "t", length, 0, 0, tuple(rollouts), rewards, ("exact",) * 4, 0.0))
    return groups, prompts


def packs_of(batch: MiniBatch, replica: int, prompts: dict[str, Prompt], mean: str) -> list[Any]:
    packs = []
    for number in batch.of_replica[replica]:
        if number >= len(batch.packs):
            packs.append(empty_pack(tiny.PACK, 0, tiny.VISION.patch_values))
            continue
        samples = [
            Sample(a.key, answer_layout(prompts[a.group.prompt], a.rollout, response_weights(a.trained, mean)))
            for a in (batch.answers[i] for i in batch.packs[number])
        ]
        packs.append(collate(samples, tiny.PACK, 0, tiny.VISION.patch_values))
    return packs


def policy_step(config: Config) -> tuple[list[float], float]:
    """Sums over tokens (with old log-probabilities shifted by a known amount) and the gradient norm, in a rank."""
    import torch.distributed as dist

    from megatron_glmv.model.build import build_model
    from megatron_glmv.parallel.groups import device_sum, init_groups
    from megatron_glmv.parallel.seeding import seed_all
    from megatron_glmv.rl.rollout.weights import WeightsDifferError, WeightSync, whole_model
    from megatron_glmv.train.optimizer import build_optimizer, wrap_ddp
    from megatron_glmv.train.step import Trainer, unwrap

    groups = init_groups(Topology.resolve(config.parallel, dist.get_world_size()))
    seed_all(config.train.seed)
    device = torch.device("cpu")
    chunks = wrap_ddp(build_model(config, groups, backend="torch", device=device), config.parallel, config.precision)
    trainer = Trainer(chunks, build_optimizer(config.optim, config, chunks), groups, device, config.data.pack_tokens)

    other = replace(config, train=replace(config.train, seed=99))
    sync = WeightSync(chunks, whole_model(other, groups, backend="torch", device=device), groups, device)
    with pytest.raises(WeightsDifferError):
        sync.verify()
    sync()
    sync.verify()

    judged, prompts = made_up_groups()
    answers = [a for group in judged for a in answers_of(group, by_deviation=True)]
    cost = Cost.of(config.model)
    batch = lay_out_packs(answers, config.rl.loss_mean, tiny.PACK, groups.topology.data, 1, cost)
    policy = PolicyLoss(config.rl, targets_of(batch, tiny.PACK), groups.cp)
    rows = rows_of(config.model.text) if config.rl.routing_replay else None
    if rows is not None:
        replay([unwrap(chunk) for chunk in chunks], rows)
        trainer.routes = routes_of([batch], tiny.PACK, rows)
    packs = packs_of(batch, groups.dp_rank, prompts, config.rl.loss_mean)
    with torch.no_grad():
        trainer.forward_backward(packs, policy.remember, forward_only=True)
    for ids, old in policy.old.items():  # as if the weights had moved: some ratios beyond the clip, none near it
        policy.old[ids] = old + 0.15
    collected = trainer.accumulate(packs, policy, batch.weight, None)
    counted = groups.last_stage and groups.tp.rank() == 0
    mine = torch.stack(collected).sum(0).tolist() if counted else [0.0] * len(MEASURED)
    return device_sum(mine, None, device), trainer.update()


def config(rl: RLConfig, **parallel: Any) -> Config:
    return replace(tiny.config(**parallel), rl=rl)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rl",
    [RLConfig(tis_cap=1.5), RLConfig(ratio="sequence", loss_mean="token"), RLConfig(routing_replay=True, tis_cap=1.5)],
    ids=["token ratio, sample mean, TIS", "GSPO, token mean", "replayed experts"],
)
def test_a_policy_step_is_that_of_one_process(rl: RLConfig) -> None:
    (reference, norm), *_ = run_ranks(policy_step, 1, config(rl))
    by_name = dict(zip(MEASURED, reference, strict=True))
    assert by_name["tokens"] > 50 and abs(by_name["loss"]) > 0.01 and norm > 1e-3 and by_name["drift"] > 1
    for name, layout in LAYOUTS.items():
        ranks = run_ranks(policy_step, 2, config(rl, **layout))
        assert ranks[0] == ranks[1], name
        assert ranks[0][0] == pytest.approx(reference, rel=1e-5, abs=1e-6), name
        assert ranks[0][1] == pytest.approx(norm, rel=1e-4), name


def test_the_same_answers_in_other_packs_have_the_same_targets() -> None:
    judged, prompts = made_up_groups()
    answers = [a for group in judged for a in answers_of(group, by_deviation=True)]
    batch = lay_out_packs(answers, "sample", tiny.PACK, 2, 1, Cost.of(tiny.MODEL))
    assert batch.weight == 20 and len(batch.answers) == 16, "the group without advantage counts and is not computed"
    assert sorted(i for pack in batch.packs for i in pack) == list(range(16))
    assert len(batch.of_replica[0]) == len(batch.of_replica[1])
    targets = targets_of(batch, tiny.PACK)
    packs = [pack for replica in (0, 1) for pack in packs_of(batch, replica, prompts, "sample")]
    seen = 0
    for pack in packs:
        target = targets[pack.sample_ids]
        for key, start in zip(pack.sample_ids, pack.cu_seqlens.tolist(), strict=False):
            answer = next(a for a in batch.answers if a.key == key)
            first = start + answer.group.tokens - 1
            span = slice(first, first + len(answer.rollout.token_ids))
            assert pack.labels[span].tolist() == list(answer.rollout.token_ids)
            assert target.rollout_logprobs[span].tolist() == pytest.approx(answer.rollout.logprobs)
            assert target.advantages[span].tolist() == pytest.approx([answer.advantage] * len(answer.rollout.token_ids))
            assert float(pack.loss_weights[span].sum()) == pytest.approx(1.0)
            assert ((pack.loss_weights[span] > 0).numpy() == answer.trained).all()
            seen += 1
        assert float(pack.loss_weights.sum()) == pytest.approx(len(pack.sample_ids))
    assert seen == 16
