"""Every verifier's table: what is right, wrong, malformed and hostile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.synthetic.registry import TASKS
from megatron_glmv.rl.rewards.domains import DOMAINS, find
from megatron_glmv.rl.rewards.registry import Judge
from megatron_glmv.rl.rewards.types import Item, JudgeOptions

Case = tuple[str, Any, dict[str, Any], float]
"""Boxed answer, reference, extra, reward."""


def box(final: str) -> str:
    return f"<think>I look.</think>It is <|begin_of_box|>{final}<|end_of_box|>."


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(JudgeOptions(workers=1)) as one:
        yield one


def rewards(judge: Judge, domain: str, cases: list[Case]) -> None:
    """Judge the whole table in one call, and compare."""
    found = judge.judge([Item(domain, box(final), answer, extra) for final, answer, extra, _ in cases])
    for (final, answer, extra, reward), judgement in zip(cases, found, strict=True):
        assert judgement.reward == pytest.approx(reward, abs=1e-9), (final, answer, extra, judgement)
        assert judgement.reason


def test_exact(judge: Judge) -> None:
    rewards(
        judge,
        "colour",
        [
            ("red", "red", {}, 1),
            ("Red.", "red", {}, 1),
            ("4", 4, {}, 1),
            ("blue", ["red", "blue"], {}, 1),
            ("reddish", "red", {}, 0),
            (" ", "red", {}, 0),
            ("None", None, {}, 0),
            ("", "", {}, 0),
        ],
    )
    bare = judge.judge([Item("colour", "red", "red"), Item("colour", "", "red"), Item("colour", "<think>red", "red")])
    assert [j.reward for j in bare] == [1, 0, 0]


def test_math(judge: Judge) -> None:
    rewards(
        judge,
        "math",
        [
            ("1/2", "0.5", {}, 1),
            ("\\frac{1}{2}", "0.5", {}, 1),
            ("x^2+2x+1", "(x+1)^2", {}, 1),
            ("\\{1, 2\\}", "\\{2,1\\}", {}, 1),
            ("2\\sqrt{2}", "\\sqrt{8}", {}, 1),
            ("π/2", "\\frac{\\pi}{2}", {}, 1),
            ("x=5", "5", {}, 1),
            ("1,000", "1000", {}, 1),
            ("50%", "0.5", {}, 1),
            ("3.1415927", "\\pi", {}, 1),
            ("3.14", "\\pi", {}, 0),
            ("3.14", "\\pi", {"tolerance": 0.01}, 1),
            ("1000001", "1000000", {}, 0),
            ("2x", "3x", {}, 0),
            ("\\frac{1}{", "0.5", {}, 0),
            ("9**9**9**9", "1", {}, 0),
            ("9^{9^{9^{9}}}", "1", {}, 0),
            ("(10^6)!", "1", {}, 0),
            ("__import__('os').system('true')", "1", {}, 0),
            ("(" * 400 + ")" * 400, "1", {}, 0),
            ("1" * 5000, "1", {}, 0),
        ],
    )


def test_every_synthetic_task_has_a_verifier() -> None:
    assert [name for name in TASKS if find(name) is None] == []


def test_an_unknown_domain_is_named_before_a_run_and_costs_nothing_but_its_reward_in_one(judge: Judge) -> None:
    with pytest.raises(ConfigError, match="nearest name is 'math'"):
        Judge.require(["colour", "maths"])
    judgement = judge.judge([Item("maths", box("1"), "1")])[0]
    assert (judgement.reward, judgement.verifier) == (0.0, "none")
    assert "'math'" in judgement.reason


def test_names_are_forgiving() -> None:
    assert find("Math") is DOMAINS["math"]
