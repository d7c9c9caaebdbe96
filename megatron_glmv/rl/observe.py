"""What an iteration reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from megatron_glmv.data.types import Json
from megatron_glmv.inference.completion import LENGTH
from megatron_glmv.rl.advantage import group_advantages, valid
from megatron_glmv.rl.curriculum import Cell, Curriculum
from megatron_glmv.rl.group import Group


def describe(groups: Sequence[Group], failed: int) -> Json:
    """Rewards whole, by domain and by who decided; lengths, endings, forced answers, share of valid groups."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = [len(rollout.own) for rollout in rollouts]
    made: Json = {
        "reward_mean": float(np.mean([reward for group in groups for reward in group.rewards])),
        "valid_groups": sum(valid(group.rewards) for group in groups) / len(groups),
        "answer_tokens": float(np.mean(lengths)),
        "answer_tokens_max": max(lengths),
        "cut_answers": sum(rollout.finish == LENGTH for rollout in rollouts) / len(rollouts),
        "forced_answers": sum(rollout.forced for rollout in rollouts) / len(rollouts),
        "judge_s": sum(group.judge_seconds for group in groups),
        "failed_prompts": failed,
    }
    played = [rollout for rollout in rollouts if rollout.responses]
    if played:
        made["turns"] = float(np.mean([len(rollout.responses) for rollout in played]))
        made["environment_errors"] = sum(bool(rollout.error) for rollout in played)
    for domain in sorted({group.domain for group in groups}):
        rewards = [reward for group in groups if group.domain == domain for reward in group.rewards]
        made[f"reward/{domain}"] = float(np.mean(rewards))
    pairs = [pair for group in groups for pair in zip(group.verifiers, group.rewards, strict=True)]
    for verifier in sorted({name for name, _ in pairs}):
        made[f"verifier/{verifier}"] = float(np.mean([reward for name, reward in pairs if name == verifier]))
    return made


def tiers(curriculum: Curriculum, before: Sequence[int], drawn: Sequence[Cell]) -> Json:
    """Prompts in each tier, how many the iteration drew of each, and the net flow toward easier tiers."""
    now = curriculum.occupancy()
    asked = Counter(cell[2] for cell in drawn)
    up = sum(i * (b - a) for i, (a, b) in enumerate(zip(before, now, strict=True)))
    return {
        **{f"tier/{i}": count for i, count in enumerate(now)},
        **{f"drawn/{i}": asked[i] for i in range(len(now))},
        "tier_flow": up,
    }


def graded(groups: Sequence[Group], cells: Sequence[Cell]) -> list[Json]:
    """Groups for groups.jsonl: prompt, the cell it was drawn from, and rewards."""
    return [
        {"prompt": group.prompt, "cell": list(cell), "rewards": list(group.rewards)}
        for group, cell in zip(groups, cells, strict=True)
    ]


def line(
    step: int,
    groups: Sequence[Group],
    drawn: Sequence[Cell],
    kept: Sequence[int],
    weights: dict[Cell, float],
    ratio: Json,
) -> Json:
    """One line of groups.jsonl. With those before it, that of the grading (step 0) too, enough to compute the
    iteration's formulas again."""
    return {
        "step": step,
        "groups": [
            told | {"kept": place in set(kept), "advantages": group_advantages(group.rewards).tolist()}
            for place, (group, told) in enumerate(zip(groups, graded(groups, drawn), strict=True))
        ],
        "weights": [[*cell, share] for cell, share in weights.items()],
        **ratio,
    }
