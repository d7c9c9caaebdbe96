"""The tools of the RLCS study, without a run: the pool has the composition that is written down, a method is compared
at its best rate with all of its rollouts, and a seed that did not reach the target is not hidden. Not covered: what the
study finds (docs/rlcs.md)."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.tools import TOOLS, load_tool


@pytest.fixture(scope="module")
def pool() -> Any:
    return load_tool("rlcs_pool")


@pytest.fixture(scope="module")
def study() -> Any:
    sys.path.insert(0, str(TOOLS))  # the tool imports its neighbours
    try:
        return load_tool("rlcs_study")
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def tables() -> Any:
    return load_tool("rlcs_tables")


def graded(task: str, rates: list[float]) -> list[dict[str, Any]]:
    return [{"id": f"{task}-{i}", "task": task, "rate": rate} for i, rate in enumerate(rates)]


def test_the_pool_has_its_shares_and_no_guesses(pool: Any) -> None:
    lines = graded("colour", [1.0] * 70) + graded("count", [0.25] * 30) + graded("sum", [0.0] * 40)
    lines += graded("shape", [0.3] * 50)  # sometimes right by luck, of no task that is to be learned
    chosen = pool.pick(lines, ["count"], 100, seed=3)
    assert Counter(line["class"] for line in chosen) == {"trivial": 60, "useful": 17, "out of reach": 23}
    assert not any(line["task"] == "shape" for line in chosen)
    assert chosen == pool.pick(lines, ["count"], 100, seed=3) and chosen != pool.pick(lines, ["count"], 100, seed=4)
    with pytest.raises(SystemExit, match="trivial"):
        pool.pick(lines[5:], ["count"], 120, seed=3)


def test_questions_are_of_one_domain_and_sums_are_right(pool: Any, tmp_path: Path) -> None:
    lines = pool.questions(tmp_path, 2, seed=5)
    assert {line["domain"] for line in lines} == {"demo"} and {line["verifier"] for line in lines} == {"exact"}
    assert {line["task"] for line in lines} == {*pool.TRIVIAL, *pool.USEFUL, pool.BEYOND}
    for line in lines:
        said = line["messages"][0]["content"][-1]["text"]
        if line["task"] == pool.BEYOND:
            a, b = said.removeprefix("what is ").removesuffix("?").split(" + ")
            assert int(line["answer"]) == int(a) + int(b) and len(line["answer"]) == 2


def result(arm: str, rate: float, seed: int, rollouts: int, reached: bool = True, graded: int = 0) -> dict[str, Any]:
    course = [
        {"step": s, "rollouts": s * rollouts // 4, "heldout_reward": 0.3 + s / 10, "heldout_greedy": 0.7}
        for s in range(5)
    ]
    made = {"arm": arm, "rate": rate, "seed": seed, "rollouts": rollouts, "reached": reached, "graded": graded}
    return {**made, "target": 0.6, "updates": rollouts // 100, "course": course}


def test_each_method_stands_at_its_best_rate_with_its_grading_apart(tables: Any, tmp_path: Path) -> None:
    results = [result("uniform", 1e-4, seed, 1000 * seed) for seed in (1, 2, 3)]
    results += [result("uniform", 1e-3, seed, 100, reached=seed > 1) for seed in (1, 2, 3)]  # one fell apart
    results += [result("rlcs", 1e-4, seed, 1300, graded=300) for seed in (1, 2)]
    results += [result("rlcs", 1e-3, seed, 900, reached=False, graded=300) for seed in (1, 2)]
    rows = tables.best_rows(tables.rows_of(results), ("uniform", "dapo", "rlcs"))
    assert [(row.arm, row.rate) for row in rows] == [("uniform", 1e-4), ("rlcs", 1e-4)]
    shown = tables.cells(rows[1], rows[0])
    assert shown[2] == "2 of 2" and shown[3] == "1,000 [1,000-1,000]"
    assert shown[4] == "0.50" and shown[5] == "1,300" and shown[6] == "0.65"
    failed = tables.cells(
        next(row for row in tables.rows_of(results) if row.arm == "rlcs" and row.rate == 1e-3), rows[0]
    )
    assert failed[2] == "0 of 2" and failed[3].startswith(">") and failed[4].startswith(">"), "a lower bound"
    written = {path.name: path.read_text() for path in tables.write_all(results, ("uniform", "rlcs"), tmp_path)}
    assert set(written) == {"study.md", "study.csv", "study.html"} and written["study.html"].count("<figure") == 3
    assert len(written["study.csv"].splitlines()) == 1 + 5 * len(results) and "| rlcs |" in written["study.md"]


def test_a_run_ends_at_two_neighbouring_evaluations_or_when_it_has_spent_its_rollouts(study: Any) -> None:
    spec = study.Spec("rlcs", 1e-4, 1, 0.5, 100, 5000, 1e9)
    course = study.Course(spec)
    for step, value in enumerate((0.3, 0.58, 0.40, None, 0.7)):
        assert not course
        course.step({"step": step, "rollouts": 100 * step} | ({} if value is None else {"heldout_reward": value}))
    assert course, "0.40 and 0.70"
    spent = study.Course(spec)
    spent.step({"step": 1, "rollouts": 5000})
    assert spent and not spent.reached
    assert set(study.COMPARED) < set(study.ARMS) and set(study.FIXED) < set(study.ARMS)
    assert study.best_rate([result("a", 1e-4, 1, 10), result("a", 1e-3, 1, 5, reached=False)], 0.1) == 1e-4
