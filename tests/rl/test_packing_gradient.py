"""However answers are packed, the accumulated gradient is that of the whole rollout batch at once.

Derivation. The loss is a sum over tokens of w_t l_t, divided by one number of the whole batch (its answers, or its
trained tokens), and w_t is a function of the token's own answer. A gradient is linear in the loss, and no answer sees
another of its pack, so the sum over micro-steps of packs' gradients is the batch's, whatever the packs: arXiv
2507.01006, section 5.4, "weight and average micro-step gradients by sample count". What is left is the order of
summation. The model runs in float64, so that this is 1e-15 and not 1e-7; its cross entropy is float32 inside, token by
token. Bound: 1e-6 of each tensor's norm. That a wrong weight would be seen: dividing each micro-step by its own number
of answers, instead of the batch's, misses the bound by far.

Not covered: several ranks (test_layouts.py), media in the packs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.config.rl import RLConfig
from megatron_glmv.config.schema import Config, ModelConfig
from megatron_glmv.data.collate import Sample, collate
from megatron_glmv.data.cost import Cost
from megatron_glmv.inference.prompts import Prompt
from megatron_glmv.parallel.topology import Topology
from megatron_glmv.rl.advantage import response_weights
from megatron_glmv.rl.batch import MiniBatch, answer_layout, lay_out_packs, targets_of
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.learner import answers_of
from megatron_glmv.rl.loss import PolicyLoss
from megatron_glmv.rl.rollout.contract import Rollout

WHOLE, SMALL = 1536, 96
"""Tokens of a pack that holds the batch, and of a micro-step."""


def judged_groups() -> tuple[list[Group], dict[str, Prompt]]:
    """Six prompts with four answers of 2 to 40 tokens, rewards from 0 to 1."""
    noise = np.random.default_rng(8)
    groups, prompts = [], {}
    for n in range(6):
        length = 10 + 3 * n
        ids = torch.from_numpy(noise.integers(0, tiny.VOCAB, length))
        prompts[f"p{n}"] = Prompt(ids, torch.arange(length).expand(3, length), torch.zeros(0, dtype=torch.int64), ())
        rollouts = []
        for k in range(4):
            size = int(noise.integers(2, 41))
            said = tuple(noise.integers(0, tiny.VOCAB, size).tolist())
            rollouts.append(Rollout(f"p{n}", 4 * n + k, said, (-4.85,) * size, (True,) * size, "", "stop"))
        rewards = tuple(noise.random(4).tolist())
        groups.append(Group(f"p{n}", "d", "t", length, 0, 0, tuple(rollouts), rewards, ("exact",) * 4, 0.0))
    return groups, prompts


def laid_out(mean: str, budget: int) -> MiniBatch:
    answers = [a for group in judged_groups()[0] for a in answers_of(group, by_deviation=True)]
    return lay_out_packs(answers, mean, budget, 1, 1, Cost.of(tiny.MODEL))


def distances(config: Config, budgets: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Norms of the tensors' gradients with the first budget, and how far the others' are from them: those of the other
    budgets, and of the second again with each micro-step divided by its own answers."""
    import torch.distributed as dist

    from megatron_glmv.model.build import build_model
    from megatron_glmv.parallel.groups import init_groups
    from megatron_glmv.parallel.seeding import seed_all
    from megatron_glmv.train.step import forward_micro_batch

    groups = init_groups(Topology.resolve(config.parallel, dist.get_world_size()))
    seed_all(config.train.seed)
    (model,) = build_model(config, groups, backend="torch", device=torch.device("cpu"))
    model.double()
    prompts, mean = judged_groups()[1], config.rl.loss_mean
    found = []
    for budget, own in (*((budget, False) for budget in budgets), (budgets[1], True)):
        batch = laid_out(mean, budget)
        policy = PolicyLoss(config.rl, targets_of(batch, budget), groups.cp)
        model.zero_grad()
        for pack in batch.packs:
            samples = [
                Sample(a.key, answer_layout(prompts[a.group.prompt], a.rollout, response_weights(a.trained, mean)))
                for a in (batch.answers[i] for i in pack)
            ]
            packed = iter([collate(samples, budget, 0, tiny.VISION.patch_values)])
            output, loss_of = forward_micro_batch(policy, None, torch.device("cpu"), (0, 1), packed, model)
            share = batch.weight if not own else len(pack) * len(batch.packs)
            (loss_of(output)[0] / share).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    return [float(g.norm()) for g in found[0].values()], [furthest(found[0], other) for other in found[1:]]


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest distance of two gradients, in the norm of its tensor."""
    return max(float((one[n] - other[n]).norm() / one[n].norm().clamp_min(1e-12)) for n in one)


@pytest.mark.parametrize("model", [tiny.MODEL, tiny.DENSE], ids=["experts", "dense"])
@pytest.mark.parametrize("mean", ["sample", "token"])
def test_packed_accumulation_is_the_whole_batch_at_once(model: ModelConfig, mean: str) -> None:
    counts = [len(laid_out(mean, budget).packs) for budget in (WHOLE, 2 * SMALL, SMALL)]
    assert counts[0] == 1 and counts[2] > counts[1] > 4
    text = replace(model.text, moe=replace(model.text.moe, aux_loss=0.0) if model.text.moe else None)
    config = replace(tiny.config(replace(model, text=text)), rl=RLConfig(loss_mean=mean))
    ((norms, (medium, small, wrong)),) = run_ranks(distances, 1, config, (WHOLE, 2 * SMALL, SMALL))
    assert len(norms) > 30 and max(norms) > 1e-2
    assert medium <= 1e-6 and small <= 1e-6
    assert wrong > 1e-2, "a weight of its own for each micro-step is another gradient"
