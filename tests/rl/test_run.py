"""Whole runs of `stage=rlcs` on a random model with random rewards: what they log, and that a killed one is continued
to the last digit.

Random rewards make groups valid, so weights move, tiers move and later draws depend on all that came before: a state
that was not saved would show in the prompts and rewards of the steps behind the kill. Not covered: learning.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.answering import make_answering_run
from helpers.reward_server import NAME, reward_server
from helpers.rlcs_run import PROMPTS, Run, records, rlcs_config, write_prompts

from megatron_glmv.checkpoint.reader import differing_tensors, open_checkpoint
from megatron_glmv.config.rl import CurriculumConfig, ExpansionConfig, RewardModelConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    make_answering_run(folder)
    write_prompts(folder)
    return folder


def run(start: Path, run_dir: Path) -> Run:
    prompts = str(start / PROMPTS)
    looked = {"heldout": prompts, "heldout_each": 2, "heldout_every": 3}
    more = {"updates": 2, "expansion": ExpansionConfig(reading="rollouts")}
    return Run(rlcs_config(start, run_dir, 6, **looked, **more))


@pytest.fixture(scope="module")
def reference(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    run(start, run_dir).finish()
    return run_dir


def test_what_is_logged_gives_the_formulas_again(reference: Path) -> None:
    """Advantages, ratio and its running mean of each iteration, in a few lines of numpy."""
    metrics, (graded, *logged) = records(reference), records(reference, name="groups.jsonl")
    assert [line["step"] for line in metrics] == list(range(7)) == [line["step"] for line in (graded, *logged)]
    assert len(graded["groups"]) == 4, "two of each subcategory"
    mean_ratio = 1.0
    for record, line in zip(metrics[1:], logged, strict=True):
        rewards = np.array([group["rewards"] for group in line["groups"]])
        centred = rewards - rewards.mean(1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(1, keepdims=True))
        expected = np.where(deviation > 0, centred / np.where(deviation > 0, deviation, 1), 0)
        assert np.allclose([group["advantages"] for group in line["groups"]], expected, atol=1e-12)
        not_valid = float((deviation == 0).mean())
        ratio = min(3.0, 1 / (1 - not_valid) if not_valid < 1 else 3.0)
        assert line["ratio_applied"] == pytest.approx(mean_ratio)
        mean_ratio = 0.8 * mean_ratio + 0.2 * ratio
        assert record["expansion_ratio"] == pytest.approx(mean_ratio) and record["reward_mean"] == rewards.mean()
        assert len(rewards) == int(np.ceil(4 * line["ratio_applied"] - 1e-9)) and record["groups_trained"] == 4
        order = sorted(range(len(rewards)), key=lambda i: (abs(rewards[i].mean() - 0.5), i))[:4]
        assert [i for i, group in enumerate(line["groups"]) if group["kept"]] == sorted(order)
    assert metrics[-1]["rollouts"] == 4 * 4 + sum(4 * len(line["groups"]) for line in logged), (
        "graded and discarded too"
    )
    assert metrics[0]["rollouts_graded"] == 16 and "heldout_reward" in metrics[3]
    looked = [line for line in metrics if "heldout_reward" in line]
    true = [line[key] for line in looked for key in ("heldout_reward", "heldout_greedy")]
    assert len(looked) == 3 and set(true) == {0.0}, "rewards of training are drawn, those of evaluation true: never '3'"
    assert max(line["drift_worst"] for line in metrics[1:]) < 1e-3
    assert any(line["clip_high"] > 0 or line["clip_low"] > 0 for line in metrics[1:]), "two updates: ratios move"


def test_a_reward_model_scores_what_has_no_verifier(start: Path, tmp_path: Path) -> None:
    """Beside prompts with a verifier; what the server fails on is left out, never called wrong."""
    lines = [json.loads(line) for line in (start / PROMPTS).read_text().splitlines()]
    for n, line in enumerate(lines):
        if line["task"] == "sum":
            line |= {"verifier": "open_ended", "answer": ""}
        for message in line["messages"]:
            for part in message["content"]:
                if n == 2 and part["type"] == "text":
                    part["text"] += " BREAK"
        media = [part for message in line["messages"] for part in message["content"] if part["type"] == "image"]
        for part in media:
            part["image"] = str(start / part["image"])
    prompts = tmp_path / PROMPTS
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with reward_server(fail="BREAK") as (url, _):
        scorer = RewardModelConfig(url=url, model=NAME, seconds=0.5)
        given = {"prompts": str(prompts), "random_rewards": False, "groups": 8, "reward_model": scorer}
        more = {"expansion": ExpansionConfig(reading="none"), "curriculum": CurriculumConfig(enabled=False)}
        Run(rlcs_config(start, tmp_path / "run", 3, **given, **more)).finish()
    metrics, logged = records(tmp_path / "run"), records(tmp_path / "run", name="groups.jsonl")
    groups = [group for line in logged for group in line["groups"]]
    scored = [group for group in groups if group["cell"][1] == "sum"]
    assert len(scored) > 3 and len(groups) > len(scored)
    rewards = [reward for group in scored for reward in group["rewards"]]
    assert sum(0 < reward < 1 for reward in rewards) > len(rewards) / 2, "0 where a random answer is malformed"
    assert any(group["advantages"] != [0.0] * 4 for group in scored), "the model's answers differ, and so do scalars"
    assert all(group["prompt"] != "p2" for group in groups), "its server fails on that prompt"
    assert sum(line["failed_prompts"] for line in metrics[1:]) + len(groups) == 3 * 8
    assert all(0 < line["verifier/open_ended+rm"] < 1 for line in metrics[1:])
    health = json.loads((tmp_path / "run" / "verifiers.json").read_text())["open_ended"]
    assert health["scalar_std"] > 0


def weights_again(logged: list[dict[str, Any]], kinds: dict[str, tuple[str, str]]) -> Iterator[dict[Any, float]]:
    """Shares of the cells in each iteration, from the rewards logged before it and what is written in docs/rlcs.md:
    older evidence on a prompt counts half, a prompt never seen has the mean of its subcategory, tiers are cut at fixed
    rates, running rates keep 0.8, a cell weighs 4 p (1 - p) + 0.02 times its prompts (at most those of a draw)."""
    edges, centres = (0.0625, 0.3, 0.7, 0.9375), (0.03125, 0.18125, 0.5, 0.81875, 0.96875)
    seen: dict[str, np.ndarray] = {}
    running: dict[Any, float] = {}

    def cell(prompt: str) -> tuple[str, str, int]:
        like = [right / count for other, (right, count) in seen.items() if kinds[other] == kinds[prompt]]
        rate = seen[prompt][0] / seen[prompt][1] if prompt in seen else np.mean(like) if like else 0.5
        return (*kinds[prompt], int(np.searchsorted(edges, rate, side="right")))

    for line in logged:
        if line["step"] > 0:
            prompts = Counter(map(cell, kinds))
            rates = {c: running.get(c, centres[c[2]]) for c in prompts}
            raw = {c: (4 * p * (1 - p) + 0.02) * min(prompts[c], 4) for c, p in rates.items()}
            yield {c: w / 2 / sum(raw[other] for other in raw if other[0] == c[0]) for c, w in raw.items()}
            assert [(*c[:2], int(c[2])) for c in (g["cell"] for g in line["groups"])] == [
                cell(g["prompt"]) for g in line["groups"]
            ]
        for group in line["groups"]:
            now, rewards = cell(group["prompt"]), np.array(group["rewards"])
            running[now] = 0.8 * running.get(now, centres[now[2]]) + 0.2 * rewards.mean()
            older = seen.get(group["prompt"], np.zeros(2))
            seen[group["prompt"]] = 0.5 * older + np.array([rewards.sum(), len(rewards)])


def test_what_is_logged_gives_the_tier_weights_again(start: Path, reference: Path) -> None:
    logged = records(reference, name="groups.jsonl")
    pool = [json.loads(line) for line in (start / PROMPTS).read_text().splitlines()]
    again = list(weights_again(logged, {prompt["id"]: (prompt["domain"], prompt["task"]) for prompt in pool}))
    for line, expected in zip(logged[1:], again, strict=True):
        assert {(d, t, n): share for d, t, n, share in line["weights"]} == pytest.approx(expected, abs=1e-12)
        assert sum(expected.values()) == pytest.approx(1.0)
    assert len({tuple(sorted(expected.items())) for expected in again}) == 6, "no two iterations have the same"
    assert max(len(expected) for expected in again) >= 4


def test_killed_and_started_again_it_draws_and_rewards_the_same(start: Path, reference: Path, tmp_path: Path) -> None:
    """Killed at an iteration that is drawn anew each time: before the first checkpoint, at one or between two."""
    victim, step = run(start, tmp_path / "run"), random.randint(0, 4)
    victim.kill_after(step)
    assert records(tmp_path / "run")[-1]["step"] < 6, "it was killed before its end"
    assert "from step" in run(start, tmp_path / "run").finish()
    assert records(tmp_path / "run") == records(reference), f"killed after step {step}, to the last digit"
    assert records(tmp_path / "run", name="groups.jsonl") == records(reference, name="groups.jsonl")
    ours, theirs = (open_checkpoint(folder) for folder in (tmp_path / "run", reference))
    assert differing_tensors(ours, theirs) == [] and ours.state == theirs.state
