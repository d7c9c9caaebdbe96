"""Grading and its statistics against their definitions."""

from __future__ import annotations

import math
import random

import pytest

from megatron_glmv.evaluate.metrics import Graded, above_chance, exact_match, extract, score, score_by, wilson


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Red", "red"),
        (" red.\n", "Red"),
        ("<think></think>\nred", "red"),
        ("<think>it is blue? no</think>\nred", "red"),
        ("<think>x</think><answer>top left</answer>", "top  left"),
        ("<answer>7", "7"),
        ("first <|begin_of_box|>blue<|end_of_box|> then <|begin_of_box|>red<|end_of_box|>", "red"),
        ("Ｒｅｄ", "red"),
        ("up, then left", "Up, then left"),
        ("-3", "-3"),
    ],
)
def test_the_same_answer_in_another_dress_is_right(reply: str, answer: str) -> None:
    assert exact_match(reply, answer)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("redder", "red"),
        ("red blue", "red"),
        ("", "red"),
        ("", ""),
        ("...", "."),
        ("<think>red", "red"),
        ("<think>red</think>", "red"),
        ("3", "-3"),
        ("1.5", "15"),
        ("left, then up", "up, then left"),
    ],
)
def test_another_answer_or_none_is_wrong(reply: str, answer: str) -> None:
    assert not exact_match(reply, answer)


def test_thinking_that_never_closed_leaves_no_answer() -> None:
    assert extract("<think>the answer is <|begin_of_box|>4<|end_of_box|>") == ""


def test_above_chance_is_zero_for_a_guesser_and_one_for_all_right() -> None:
    assert above_chance(0.25, 0.25) == 0
    assert above_chance(1.0, 0.25) == 1
    assert above_chance(0.0, 0.5) == -1
    assert above_chance(1.0, 1.0) == 0


def test_wilson_interval_has_its_published_values() -> None:
    """81 of 263 gives 0.2553 to 0.3662, and 0 of 20 gives 0 to 0.1611 (Newcombe 1998, table I, method 3)."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("n", "p"), [(40, 0.1), (250, 0.5), (250, 0.97)])
def test_wilson_interval_covers_the_truth_about_as_often_as_it_says(n: int, p: float) -> None:
    """Summed over all outcomes of a binomial, not drawn: the coverage lies near 95 % for every share."""
    covered = 0.0
    for k in range(n + 1):
        low, high = wilson(k, n)
        log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        if low <= p <= high:
            covered += math.exp(log + k * math.log(p) + (n - k) * math.log(1 - p))
    assert 0.92 < covered < 0.98


def graded(task: str, right: int, n: int, choices: int = 4) -> list[Graded]:
    answers = [f"a{i % choices}" for i in range(n)]
    return [Graded(f"{task}{i}", task, "", "", a, 1 / choices, "x", i < right) for i, a in enumerate(answers)]


def test_a_score_counts_and_its_interval_surrounds_it() -> None:
    s = score(graded("count", 150, 200))
    assert (s.n, s.correct, s.accuracy, s.chance, s.majority) == (200, 150, 0.75, 0.25, 0.25)
    assert s.above_chance == pytest.approx(2 / 3)
    low, high = wilson(150, 200)
    assert (s.low, s.high) == pytest.approx(((low - 0.25) / 0.75, (high - 0.25) / 0.75))


def test_a_guesser_scores_about_zero() -> None:
    rng = random.Random(0)
    guesses = [Graded(str(i), "t", "", "", "a", 0.25, "", rng.random() < 0.25) for i in range(4000)]
    s = score(guesses)
    assert s.low < 0 < s.high and abs(s.above_chance) < 0.04


def test_scores_by_task_are_those_of_its_questions_alone() -> None:
    both = graded("count", 10, 20) + graded("colour", 20, 20)
    scores = score_by(both, "task")
    assert list(scores) == ["colour", "count"]
    assert scores["count"] == score(graded("count", 10, 20))
    assert scores["colour"].above_chance == 1


def test_nothing_graded_is_a_score_of_nothing() -> None:
    assert score([]).n == 0
