"""Whole runs in which episodes and questions are mixed, and one step on episodes under two layouts.

The run has everything on that keeps state or depends on order: rollouts made ahead, replayed experts, expansion,
grading, evaluation. It is killed and has to go on as the unbroken one. Rewards are random (test_run.py says why); the
model ends about every other token's turn, so that most episodes have several turns, of which none is a real action.

The layouts' step has made-up answers around pictures that lie inside them: 1e-5 relative as in test_layouts.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.answering import answering_config, make_answering_run
from helpers.ranks import run_ranks
from helpers.rlcs_run import PROMPTS, Run, records, rlcs_config, write_prompts

from megatron_glmv.checkpoint.reader import differing_tensors, open_checkpoint
from megatron_glmv.config.rl import ExpansionConfig, RLConfig
from megatron_glmv.config.schema import Config
from megatron_glmv.data.cost import Cost
from megatron_glmv.data.synthetic.encode import PNG, encode_image
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.data.types import IMAGE
from megatron_glmv.inference.media import MediaFiles
from megatron_glmv.inference.prompts import Prompt, PromptBuilder
from megatron_glmv.parallel.topology import Topology
from megatron_glmv.rl.batch import AnswerPacks, lay_out_packs, targets_of
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.learner import answers_of
from megatron_glmv.rl.loss import MEASURED, PolicyLoss
from megatron_glmv.rl.rollout.contract import Rollout
from megatron_glmv.rl.trajectory import Trajectory

pytestmark = pytest.mark.slow

PACK = 512


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    make_answering_run(folder, brief=True)
    path = write_prompts(folder)
    lines = [json.loads(text) for text in path.read_text().splitlines()[:6]]
    worlds = (("zoom", {}), ("gui_agent", {"platform": "web"}), ("gui_agent", {"screens": "buttons"}))
    for n, (name, options) in enumerate(worlds * 3):
        environment = {"name": name, "index": n, "options": options}
        lines.append({"id": f"e{n}", "domain": "agents", "environment": environment})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run(start: Path, run_dir: Path) -> Run:
    looked = {"heldout": str(start / PROMPTS), "heldout_each": 2, "heldout_every": 2}
    drift = {"tis_cap": 2.0, "drift_limit": 5.0, "routing_replay": True, "staleness": 1}
    # 1e-3 moves this model by 7 in the log-probability of a token within a step: beyond the gate, one step off policy
    expansion = ExpansionConfig(reading="rollouts")
    config = rlcs_config(start, run_dir, 4, rate=1e-4, **looked, **drift, expansion=expansion)
    return Run(replace(config, data=replace(config.data, pack_tokens=PACK)))


def test_episodes_and_questions_go_on_after_a_kill_as_if_unbroken(start: Path, tmp_path: Path) -> None:
    whole, victim = run(start, tmp_path / "whole"), run(start, tmp_path / "victim")
    victim.kill_after(2)
    assert records(tmp_path / "victim")[-1]["step"] < 4, "it was killed before its end"
    whole.finish()
    run(start, tmp_path / "victim").finish()
    lines = records(tmp_path / "whole")
    assert records(tmp_path / "victim") == lines and [line["step"] for line in lines] == list(range(5))
    logged = records(tmp_path / "whole", name="groups.jsonl")
    assert records(tmp_path / "victim", name="groups.jsonl") == logged
    ours, theirs = (open_checkpoint(tmp_path / name) for name in ("victim", "whole"))
    assert differing_tensors(ours, theirs) == [] and ours.state == theirs.state

    assert [line["staleness"] for line in lines[1:]] == [0, 1, 1, 1]
    assert lines[1]["drift_worst"] < 1e-3, "the gate, on policy"
    assert all(line["turns"] > 1.2 and line["environment_errors"] == 0 for line in lines[1:] if "turns" in line)
    both = {key for line in lines for key in line if key.startswith(("reward/", "heldout_reward/", "verifier/"))}
    assert both >= {"reward/agents", "reward/text", "heldout_reward/agents", "verifier/zoom", "verifier/gui_agent"}
    drawn = [group["prompt"] for line in logged for group in line["groups"]]
    assert any(id.startswith("e") for id in drawn) and any(id.startswith("p") for id in drawn)
    assert {tuple(cell[:2]) for line in logged for *cell, _ in line.get("weights", ())} >= {
        ("agents", "zoom"),
        ("text", "sum"),
    }
    assert max(line["trained_tokens"] for line in lines[1:]) > 0 and lines[-1]["rollouts_graded"] == 4 * 2 * 4


def made_up(start: Path, config: Config) -> tuple[list[Group], dict[str, Prompt], dict[str, tuple[Prompt, ...]], Any]:
    """Three prompts of four answers of one to three turns, with pictures of several sizes in prompts and turns."""
    noise, device = np.random.default_rng(3), torch.device("cpu")
    tokenizer = Tokenizer.load(start / "data" / "tokenizer")
    files = MediaFiles(config.data, config.model.vision, device)
    builder = PromptBuilder(tokenizer, files)

    def seen(pictures: int) -> tuple[dict[str, Any], list[Any]]:
        sizes = [((24, 32), (40, 24), (48, 48))[int(noise.integers(3))] for _ in range(pictures)]
        media = [
            files.hold(IMAGE, encode_image(noise.integers(0, 256, (*size, 3), dtype=np.uint8), PNG)) for size in sizes
        ]
        parts = [{"type": IMAGE, IMAGE: ""}] * pictures
        return {"role": "user", "content": [*parts, {"type": "text", "text": "Which colour is it?"}]}, media

    groups, prompts, turns = [], {}, {}
    for n in range(3):
        message, media = seen(n % 2)
        prompt = prompts[f"e{n}"] = builder.of_media({"id": "e", "messages": [message]}, media)
        rollouts = []
        for k in range(4):
            trajectory, told = Trajectory(prompt, 4 * n + k), []
            for turn in range(1 + (k + n) % 3):
                if turn:
                    message, media = seen(int(noise.integers(3)))
                    told.append(builder.turn(message, media, role_said=bool(turn % 2)))
                    trajectory.tell(told[-1])
                size = int(noise.integers(2, 9))
                ids = tuple(noise.integers(0, 256, size).tolist())
                guess = tuple((-5.8 + 0.1 * noise.standard_normal(size)).tolist())
                trajectory.hear(Rollout(f"e{n}", 4 * n + k, ids, guess, (True,) * size, "said", "stop"))
            rollouts.append(trajectory.rollout(f"e{n}"))
            turns[f"e{n}#{4 * n + k}"] = tuple(told)
        grids = [medium.plan.grid for medium in prompt.media]
        sizes = len(prompt), sum(g.patches for g in grids), sum(g.t for g in grids)
        rewards = tuple(float(k <= n) for k in range(4))
        groups.append(Group(f"e{n}", "d", "t", *sizes, tuple(rollouts), rewards, ("mirror",) * 4, 0.0))
    return groups, prompts, turns, files


def episode_step(config: Config, start: Path) -> tuple[list[float], float]:
    """Sums over tokens, old log-probabilities shifted by a known amount, and the gradient norm, in a rank."""
    import torch.distributed as dist

    from megatron_glmv.model.build import build_model
    from megatron_glmv.parallel.groups import device_sum, init_groups
    from megatron_glmv.parallel.seeding import seed_all
    from megatron_glmv.train.feed import Feed
    from megatron_glmv.train.optimizer import build_optimizer, wrap_ddp
    from megatron_glmv.train.step import Trainer

    groups = init_groups(Topology.resolve(config.parallel, dist.get_world_size()))
    seed_all(config.train.seed)
    device = torch.device("cpu")
    chunks = wrap_ddp(build_model(config, groups, backend="torch", device=device), config.parallel, config.precision)
    trainer = Trainer(chunks, build_optimizer(config.optim, config, chunks), groups, device, PACK)

    judged, prompts, turns, files = made_up(start, config)
    answers = [answer for group in judged for answer in answers_of(group, by_deviation=True)]
    batch = lay_out_packs(answers, "sample", PACK, groups.topology.data, 1, Cost.of(config.model))
    policy = PolicyLoss(config.rl, targets_of(batch, PACK), groups.cp)
    owner = dist.get_process_group_ranks(groups.model)[0] == dist.get_rank()
    packs = AnswerPacks(files, 0, PACK, "sample")
    feed = Feed(packs if owner else None, groups, device, 1)
    if owner:
        packs.make(batch, groups.dp_rank, prompts, turns)
    feed.micro_batches = len(batch.of_replica[groups.dp_rank])
    ready = feed.next_step()
    with torch.no_grad():
        trainer.forward_backward(ready, policy.remember, forward_only=True)
    for ids, old in policy.old.items():
        policy.old[ids] = old + 0.15
    collected = trainer.accumulate(ready, policy, batch.weight, None)
    counted = groups.last_stage and groups.tp.rank() == 0
    mine = torch.stack(collected).sum(0).tolist() if counted else [0.0] * len(MEASURED)
    return device_sum(mine, None, device), trainer.update()


def test_a_step_on_episodes_is_that_of_one_process(start: Path) -> None:
    def config(**parallel: Any) -> Config:
        made = answering_config(start)
        layout = tiny.config(**parallel).parallel
        return replace(made, data=replace(made.data, pack_tokens=PACK), rl=RLConfig(tis_cap=1.5), parallel=layout)

    (reference, norm), *_ = run_ranks(episode_step, 1, config(), start)
    by_name = dict(zip(MEASURED, reference, strict=True))
    assert by_name["tokens"] > 50 and abs(by_name["loss"]) > 0.01 and norm > 1e-3 and by_name["drift"] > 1
    for name, layout in {"TP2": {"tensor": 2}, "PP2": {"pipeline": 2}, "DP2": {"data": 2}}.items():
        ranks = run_ranks(episode_step, 2, config(**layout), start)
        assert ranks[0] == ranks[1], name
        assert ranks[0][0] == pytest.approx(reference, rel=1e-5, abs=1e-6), name
        assert ranks[0][1] == pytest.approx(norm, rel=1e-4), name
