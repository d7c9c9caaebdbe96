"""Rollouts made ahead: what is trained on is never older than allowed, and nothing but the weights differs.

With a learning rate of 0 all weights are the same, so a run that rolls out ahead has to be that of one that does not,
to the last bit of every number: draws, rollouts, rewards, losses. With a learning rate its rollouts are one step old,
and a run that is killed goes on with those that the unbroken one has. One process; several ranks share the code that
gathers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.answering import answering_config, make_answering_run

from megatron_glmv.checkpoint.reader import differing_tensors, open_checkpoint
from megatron_glmv.config.load import to_json
from megatron_glmv.config.rl import CurriculumConfig, ExpansionConfig, RLConfig
from megatron_glmv.config.schema import Config, OptimConfig, StageConfig, TrainConfig
from megatron_glmv.rl.ahead import InBackground, Rolled, StaleError, check_age
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.rollout.contract import Rollout

TIMES = {"step_time_s", "data_wait_s", "judge_s"}
PROGRAM = (
    "import sys, yaml; from megatron_glmv.config.load import from_dict; from megatron_glmv.stages.run import run; "
    "sys.exit(run(from_dict(yaml.safe_load(open(sys.argv[1])))))"
)


def rolled(step: int, version: int) -> Rolled:
    rollout = Rollout("p", 3, (1, 2), (-0.1, -1 / 3), (True, False), "a", "stop", ("k",))
    group = Group("p", "d", "t", 5, 0, 0, (rollout,), (1.0, 1 / 3), ("exact", "exact"), 0.25)
    return Rolled(step, version, (group,), 1, (0, 2, 1), {("d", "t", 2): 1 / 3}, 1.7, 4)


@pytest.mark.parametrize(("version", "bound", "old"), [(6, 0, False), (5, 0, True), (5, 1, False), (4, 1, True)])
def test_rollouts_older_than_allowed_are_not_trained_on(version: int, bound: int, old: bool) -> None:
    made = rolled(7, version)
    assert made.staleness == 6 - version
    with pytest.raises(StaleError, match=r"rl\.staleness is") if old else contextlib.nullcontext():
        check_age(made, bound)


def test_what_waits_comes_back_from_a_checkpoint_bit_by_bit() -> None:
    made = rolled(7, 6)
    assert Rolled.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_a_failure_in_the_background_is_the_failure_of_the_step() -> None:
    background = InBackground()
    background.start(lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="running already"):
        background.start(lambda: 1)
    with pytest.raises(ZeroDivisionError):
        background.result()
    background.close()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    make_answering_run(folder)
    lines = []
    for n in range(12):
        picture = [{"type": "image", "image": f"data/media/{'abc'[n % 3]}.png"}] if n % 2 else []
        content = [*picture, {"type": "text", "text": f"How many are there? {n}"}]
        lines.append(
            {"id": f"p{n}", "task": "count", "answer": "3", "messages": [{"role": "user", "content": content}]}
        )
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def config(start: Path, run_dir: Path, staleness: int, rate: float) -> Config:
    prompts = str(start / "prompts.jsonl")
    rl = RLConfig(
        prompts=prompts,
        heldout=prompts,
        heldout_each=2,
        heldout_every=3,
        groups=4,
        group_size=4,
        max_new_tokens=8,
        random_rewards=True,
        staleness=staleness,
        tis_cap=2.0,
        drift_limit=5.0,  # at this rate a step moves a random model's answers by 1
        curriculum=CurriculumConfig(grade=2),
        expansion=ExpansionConfig(reading="rollouts"),
    )
    base = answering_config(run_dir)
    return replace(
        base,
        stage=StageConfig(name="rlcs"),
        data=replace(base.data, tokenizer=str(start / "data" / "tokenizer"), val_path=""),
        optim=OptimConfig(lr=rate, min_lr=rate, warmup_steps=0, weight_decay=0.0),
        train=TrainConfig(steps=5, seed=5),
        checkpoint=replace(base.checkpoint, every=2),
        rl=rl,
        init_from=str(start / "checkpoints" / "step_3"),
    )


def begin(given: Config) -> subprocess.Popen[str]:
    run_dir = Path(given.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    file = run_dir.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(to_json(given)))
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def end(process: subprocess.Popen[str]) -> None:
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output


def records(run_dir: Path, *left_out: str, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    path = run_dir / name
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in line.items() if key not in TIMES | {*left_out}} for line in found]


@pytest.mark.slow
def test_ahead_with_weights_that_do_not_move_is_the_synchronous_run(start: Path, tmp_path: Path) -> None:
    both = [begin(config(start, tmp_path / f"bound{bound}", bound, 0.0)) for bound in (0, 1)]
    for process in both:
        end(process)
    one, other = (records(tmp_path / f"bound{bound}", "staleness") for bound in (0, 1))
    assert len(one) == 6 and one == other, "to the last digit"
    for name in ("groups.jsonl",):
        assert records(tmp_path / "bound0", name=name) == records(tmp_path / "bound1", name=name)
    assert [line["staleness"] for line in records(tmp_path / "bound0")[1:]] == [0] * 5
    assert [line["staleness"] for line in records(tmp_path / "bound1")[1:]] == [0, 1, 1, 1, 1]
    assert len({line["grad_norm"] for line in one[1:]}) == 5


@pytest.mark.slow
def test_ahead_is_one_step_old_and_goes_on_after_a_kill_as_if_unbroken(start: Path, tmp_path: Path) -> None:
    whole, victim = (begin(config(start, tmp_path / name, 1, 1e-3)) for name in ("whole", "victim"))
    deadline = time.monotonic() + 300
    while not records(tmp_path / "victim") or records(tmp_path / "victim")[-1]["step"] < 3:
        assert victim.poll() is None and time.monotonic() < deadline, victim.communicate()[0]
        time.sleep(0.01)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    assert records(tmp_path / "victim")[-1]["step"] < 5, "it was killed before its end"
    end(whole)
    end(begin(config(start, tmp_path / "victim", 1, 1e-3)))
    lines = records(tmp_path / "whole")
    assert records(tmp_path / "victim") == lines
    assert [line["staleness"] for line in lines[1:]] == [0, 1, 1, 1, 1]
    assert lines[1]["drift_mean"] < 1e-4 < min(line["drift_mean"] for line in lines[2:]), "older weights"
    assert all(line["importance"] != 1.0 for line in lines[2:])
    ours, theirs = (open_checkpoint(tmp_path / name) for name in ("victim", "whole"))
    assert differing_tensors(ours, theirs) == [] and ours.state == theirs.state
