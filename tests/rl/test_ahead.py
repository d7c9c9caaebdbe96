"""Rollouts made ahead: what is trained on is never older than allowed, and nothing but the weights differs.

With a learning rate of 0 all weights are the same, so a run that rolls out ahead has to be that of one that does not,
to the last bit of every number: draws, rollouts, rewards, losses. With a learning rate its rollouts are one step old,
and a run that is killed goes on with those that the unbroken one has. On two ranks each rolls out its share in a thread
of its own while both train, so that the answers gathered have to be those of one process: rewards, cells and draws to
the last bit, losses to the order of summation (fp32: 1e-6, measured 7e-7 of losses of 1e-3 to 4e-3; the bound is 1e-5).
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.answering import make_answering_run
from helpers.rlcs_run import PROMPTS, Run, records, rlcs_config, write_prompts

from megatron_glmv.checkpoint.reader import differing_tensors, open_checkpoint
from megatron_glmv.config.rl import ExpansionConfig
from megatron_glmv.config.schema import ParallelConfig
from megatron_glmv.rl.ahead import InBackground, Rolled, StaleError, check_age
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.rollout.contract import Rollout


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
    write_prompts(folder)
    return folder


def run(start: Path, run_dir: Path, staleness: int, rate: float, **layout: int) -> Run:
    looked = {"heldout": str(start / PROMPTS), "heldout_each": 2, "heldout_every": 3}
    drift = {"tis_cap": 2.0, "drift_limit": 5.0}  # at this rate a step moves a random model's answers by 1
    more = {"staleness": staleness, "expansion": ExpansionConfig(reading="rollouts")}
    config = rlcs_config(start, run_dir, 5, rate=rate, **looked, **drift, **more)
    return Run(replace(config, optim=replace(config.optim, weight_decay=0.0), parallel=ParallelConfig(**layout)))


@pytest.mark.slow
def test_ahead_with_weights_that_do_not_move_is_the_synchronous_run(start: Path, tmp_path: Path) -> None:
    for process in [run(start, tmp_path / f"bound{bound}", bound, 0.0) for bound in (0, 1)]:
        process.finish()
    one, other = (records(tmp_path / f"bound{bound}", "staleness") for bound in (0, 1))
    assert len(one) == 6 and one == other, "to the last digit"
    for name in ("groups.jsonl",):
        assert records(tmp_path / "bound0", name=name) == records(tmp_path / "bound1", name=name)
    assert [line["staleness"] for line in records(tmp_path / "bound0")[1:]] == [0] * 5
    assert [line["staleness"] for line in records(tmp_path / "bound1")[1:]] == [0, 1, 1, 1, 1]
    assert len({line["grad_norm"] for line in one[1:]}) == 5


@pytest.fixture(scope="module")
def alone(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, with a learning rate that moves log-probabilities by 0.004 to 0.02 a step and no answer."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    run(start, run_dir, 1, 1e-5).finish()
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"tensor": 2}, {"data": 2}], ids=["TP2", "DP2"])
def test_ahead_on_two_ranks_is_the_run_of_one(start: Path, alone: Path, tmp_path: Path, layout: dict[str, int]) -> None:
    """Drift tells how old the answers are: were one rank's of the present weights, half of it would be gone."""
    run(start, tmp_path / "two", 1, 1e-5, **layout).finish()
    groups = records(alone, name="groups.jsonl")
    assert records(tmp_path / "two", name="groups.jsonl") == groups, "to the last bit"
    lines, expected = records(tmp_path / "two")[1:], records(alone)[1:]
    assert [line["staleness"] for line in lines] == [0, 1, 1, 1, 1]
    for ours, theirs in zip(lines, expected, strict=True):
        for key in ("loss", "grad_norm", "entropy", "reward_mean", "answer_tokens"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key
    for ours, theirs in zip(lines[1:], expected[1:], strict=True):
        assert ours["drift_mean"] == pytest.approx(theirs["drift_mean"], rel=0.01)
        assert theirs["drift_mean"] > 100 * expected[0]["drift_mean"]


@pytest.mark.slow
def test_ahead_is_one_step_old_and_goes_on_after_a_kill_as_if_unbroken(start: Path, tmp_path: Path) -> None:
    whole, victim = (run(start, tmp_path / name, 1, 1e-3) for name in ("whole", "victim"))
    victim.kill_after(3)
    assert records(tmp_path / "victim")[-1]["step"] < 5, "it was killed before its end"
    whole.finish()
    run(start, tmp_path / "victim", 1, 1e-3).finish()
    lines = records(tmp_path / "whole")
    assert records(tmp_path / "victim") == lines
    assert [line["staleness"] for line in lines[1:]] == [0, 1, 1, 1, 1]
    assert lines[1]["drift_mean"] < 1e-4 < min(line["drift_mean"] for line in lines[2:]), "older weights"
    assert all(line["importance"] != 1.0 for line in lines[2:])
    ours, theirs = (open_checkpoint(tmp_path / name) for name in ("victim", "whole"))
    assert differing_tensors(ours, theirs) == [] and ours.state == theirs.state
