"""Whole runs of `stage=rlcs` on a random model with random rewards: what they log, and that a killed one is continued
to the last digit.

Random rewards make groups valid, so weights move, tiers move and later draws depend on all that came before: a state
that was not saved would show in the prompts and rewards of the steps behind the kill. Not covered: learning.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.answering import answering_config, make_answering_run

from megatron_glmv.checkpoint.reader import differing_tensors, open_checkpoint
from megatron_glmv.config.load import to_json
from megatron_glmv.config.rl import CurriculumConfig, ExpansionConfig, RLConfig
from megatron_glmv.config.schema import Config, OptimConfig, StageConfig, TrainConfig

pytestmark = pytest.mark.slow

TIMES = {"step_time_s", "data_wait_s", "judge_s"}
PROGRAM = (
    "import sys, yaml; from megatron_glmv.config.load import from_dict; from megatron_glmv.stages.run import run; "
    "sys.exit(run(from_dict(yaml.safe_load(open(sys.argv[1])))))"
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    checkpoint = make_answering_run(folder)
    lines = []
    for n in range(16):
        picture = [{"type": "image", "image": f"data/media/{'abc'[n % 3]}.png"}] if n % 2 else []
        question = {"type": "text", "text": f"How many are there? {n}"}
        messages = [{"role": "user", "content": [*picture, question]}]
        task, domain = ("count", "image") if n % 2 else ("sum", "text")
        lines.append({"id": f"p{n}", "task": task, "domain": domain, "answer": "3", "messages": messages})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert checkpoint.is_dir()
    return folder


def rlcs_config(start: Path, run_dir: Path) -> Config:
    prompts = str(start / "prompts.jsonl")
    rl = RLConfig(
        prompts=prompts,
        heldout=prompts,
        heldout_each=2,
        heldout_every=3,
        groups=4,
        group_size=4,
        updates=2,
        max_new_tokens=8,
        random_rewards=True,
        curriculum=CurriculumConfig(grade=2),
        expansion=ExpansionConfig(reading="rollouts"),
    )
    base = answering_config(run_dir)
    return replace(
        base,
        stage=StageConfig(name="rlcs"),
        data=replace(base.data, tokenizer=str(start / "data" / "tokenizer"), val_path=""),
        optim=OptimConfig(lr=1e-3, min_lr=1e-3, warmup_steps=0),
        train=TrainConfig(steps=6, seed=5),
        checkpoint=replace(base.checkpoint, every=2),
        rl=rl,
        init_from=str(start / "checkpoints" / "step_3"),
    )


class Run:
    """`glmv train` of a config, in a process group of its own."""

    def __init__(self, start: Path, run_dir: Path) -> None:
        self.run_dir = run_dir
        run_dir.mkdir(exist_ok=True)
        given = run_dir.with_suffix(".yaml")
        given.write_text(yaml.safe_dump(to_json(rlcs_config(start, run_dir))))
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(given)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def finish(self) -> str:
        try:
            output, _ = self.process.communicate(timeout=300)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.returncode == 0, output
        return output

    def kill_after(self, step: int) -> None:
        deadline = time.monotonic() + 300
        while not records(self.run_dir) or records(self.run_dir)[-1]["step"] < step:
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()[0]
            time.sleep(0.01)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def records(run_dir: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    path = run_dir / name
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


@pytest.fixture(scope="module")
def reference(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    Run(start, run_dir).finish()
    return run_dir


def test_what_is_logged_gives_the_formulas_again(reference: Path) -> None:
    """Twenty lines of numpy: advantages, ratio and its running mean, tier weights of each iteration."""
    metrics, logged = records(reference), records(reference, "groups.jsonl")
    assert [line["step"] for line in metrics] == list(range(7)) and [line["step"] for line in logged] == list(
        range(1, 7)
    )
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
        assert sum(share for *_, share in line["weights"]) == pytest.approx(1.0)
        for domain in ("image", "text"):
            assert sum(w[3] for w in line["weights"] if w[0] == domain) == pytest.approx(0.5)
    assert metrics[-1]["rollouts"] == 4 * 4 + sum(4 * len(line["groups"]) for line in logged), (
        "graded and discarded too"
    )
    assert metrics[0]["rollouts_graded"] == 16 and "heldout_reward" in metrics[3]
    looked = [line for line in metrics if "heldout_reward" in line]
    true = [line[key] for line in looked for key in ("heldout_reward", "heldout_greedy")]
    assert len(looked) == 3 and set(true) == {0.0}, "rewards of training are drawn, those of evaluation true: never '3'"
    assert max(line["drift_worst"] for line in metrics[1:]) < 1e-3
    assert any(line["clip_high"] > 0 or line["clip_low"] > 0 for line in metrics[1:]), "two updates: ratios move"


def test_killed_and_started_again_it_draws_and_rewards_the_same(start: Path, reference: Path, tmp_path: Path) -> None:
    """Killed at an iteration that is drawn anew each time: before the first checkpoint, at one or between two."""
    victim, step = Run(start, tmp_path / "run"), random.randint(1, 4)
    victim.kill_after(step)
    assert records(tmp_path / "run")[-1]["step"] < 6, "it was killed before its end"
    assert "from step" in Run(start, tmp_path / "run").finish()
    assert records(tmp_path / "run") == records(reference), f"killed after step {step}, to the last digit"
    assert records(tmp_path / "run", "groups.jsonl") == records(reference, "groups.jsonl")
    ours, theirs = (open_checkpoint(folder) for folder in (tmp_path / "run", reference))
    assert differing_tensors(ours, theirs) == [] and ours.state == theirs.state
