"""Every verifier's table: what is right, wrong, malformed and hostile."""

from __future__ import annotations

import json
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
            ("x^{9^{9^9}}", "1", {}, 0),
            ("2^{10}", "1024", {}, 1),
            ("e^{-x^{2}}", "\\frac{1}{e^{x^2}}", {}, 1),
            ("__import__('os').system('true')", "1", {}, 0),
            ("(" * 400 + ")" * 400, "1", {}, 0),
            ("1" * 5000, "1", {}, 0),
        ],
    )


def test_every_synthetic_task_has_a_verifier() -> None:
    assert [name for name in TASKS if find(name) is None] == []


def test_an_unknown_domain_is_named_before_a_run_and_costs_nothing_but_its_reward_in_one(judge: Judge) -> None:
    with pytest.raises(ConfigError, match="nearest name is 'math'"):
        judge.require(["colour", "maths"])
    judgement = judge.judge([Item("maths", box("1"), "1")])[0]
    assert (judgement.reward, judgement.verifier) == (0.0, "none")
    assert "'math'" in judgement.reason


def test_names_are_forgiving() -> None:
    assert find("Math") is DOMAINS["math"]


DOUBLED = [{"stdin": "2", "stdout": "4"}, {"input": "5", "output": "10\n"}]
THIRD = [{"call": "f", "args": [1], "kwargs": {"k": 1}, "expected": 1.3333333}]
TAP = {"action_type": "click", "box_2d": [[0, 0, 100, 50]]}
TOWER = {"address": "France, Paris", "name": "Eiffel Tower"}

TABLES: dict[str, list[Case]] = {
    "physics": [
        ("9.81 m/s^2", "9.81 m/s²", {}, 1),
        ("1 km", "1000 m", {}, 1),
        ("25 °C", "298.15 K", {}, 1),
        ("3.6\\,\\text{km/h}", "1 m/s", {}, 1),
        ("5 \\times 10^{-3} A", "5 mA", {}, 1),
        ("2 kg·m/s^2", "2 N", {}, 1),
        ("8.314 J/(mol·K)", "8.314 J mol^-1 K^-1", {}, 1),
        ("30^\\circ", "30 degrees", {}, 1),
        ("Increases", "increases", {}, 1),
        ("5 mW", "5 MW", {}, 0),
        ("5 J", "5 N", {}, 0),
        ("5 m", "5 km", {}, 0),
        ("9.8 m/s^2", "9.81 m/s^2", {}, 0),
        ("9.8 m/s^2", "9.81 m/s^2", {"tolerance": 0.01}, 1),
        ("12 m", "12", {}, 1),
        ("12", "12 m", {}, 0),
        ("12 m", "12", {"unit": "m"}, 1),
        ("0.012 km", "12", {"unit": "m"}, 1),
        ("mgh/2", "\\frac{mgh}{2}", {}, 1),
        ("9**9**9**9 m", "1 m", {}, 0),
        ("1 m^9^9", "1 m", {}, 0),
    ],
    "chemistry": [
        ("H_2O", "H2O", {}, 1),
        ("\\mathrm{CO_2}", "CO2", {}, 1),
        ("0.5 mol/L", "0.5 M", {}, 1),
        ("-285.8 kJ/mol", "-285800 J/mol", {}, 1),
        ("Ca(OH)_2", "Ca(OH)2", {}, 1),
        ("CO", "Co", {}, 0),
        ("(" + "A" * 300, "Co", {}, 0),
        ("1.5 mol", "1.5 g", {}, 0),
    ],
    "chart": [
        ("102", "100", {}, 1),
        ("103", "100", {}, 0),
        ("97.5", "100", {}, 1),
        ("50%", "50", {}, 1),
        ("0.5", "50%", {}, 1),
        ("$1,020", "1000.5", {}, 1),
        ("2010", "2010", {}, 1),
        ("2011", "2010", {}, 0),
        ("1020", "1000", {"year": False}, 1),
        ("3.05 million", "3 million", {}, 1),
        ("3 thousand", "3 million", {}, 0),
        ("Brazil", "brazil", {}, 1),
        ("France", "Brazil", {}, 0),
        ("1e999", "100", {}, 0),
        ("nan", "100", {}, 0),
    ],
    "ocr": [
        ("Hello World", "Hello World", {}, 1),
        ("Hello\nWorld", "HelloWorld", {}, 1),
        ("kitten", "sitting", {}, 1 - 3 / 7),
        ("HELLO", "hello", {}, 0),
        ("HELLO", "hello", {"ignore_case": True}, 1),
        ("abc", "xyz", {}, 0),
        ("x" * 50_000, "x", {}, 0),
        ("a", "", {}, 0),
    ],
    "vqa": [
        ("the cat", "Cat", {}, 1),
        ("yes", "true", {}, 1),
        ("No", "yes", {}, 0),
        ("3.0", "3", {}, 1),
        ("4", "3", {}, 0),
        ("dog", ["cat", "dog"], {}, 1),
        ("a cat or a dog", "cat", {}, 0),
    ],
    "counting": [
        ("4", "4", {}, 1),
        ("four", 4, {}, 1),
        ("4.0", "4", {}, 1),
        ("5", "4", {}, 0),
        ("4 or 5", "4", {}, 0),
        ("\u0664", "4", {}, 1),
    ],
    "grounding": [
        ("[[10,10,110,110]]", [[10, 10, 110, 110]], {}, 1),
        ("[10, 10, 110, 110]", "[[10,10,110,110]]", {}, 1),
        ("[[10,10,110,110],[500,500,600,600]]", [[10, 10, 110, 110]], {}, 0.5),
        ("[[10,10,110,110]]", [[10, 10, 110, 110], [500, 500, 600, 600]], {}, 0.5),
        ("[[10,10,110,110]]" * 2, [[10, 10, 110, 110]], {}, 0.5),
        ("[[60,10,160,110]]", [[10, 10, 110, 110]], {}, 0),
        ("[[60,10,160,110]]", [[10, 10, 110, 110]], {"tau": 0.3}, 1),
        ("[[100,100,200,200]]", [[64, 48, 128, 96]], {"size": [640, 480]}, 1),
        ("[[110,110,10,10]]", [[10, 10, 110, 110]], {}, 0),
        ("[[1,1,2,2]]" * 1000, [[1, 1, 2, 2]], {}, 0),
        ("no box", [[10, 10, 110, 110]], {}, 0),
        ("[1,2,3]", [[10, 10, 110, 110]], {}, 0),
    ],
    "coding": [
        ("print(int(input()) * 2)", None, {"tests": DOUBLED}, 1),
        ("```python\ndef f(x):\n    return (x, x)\n```", ["assert f(2) == (2, 2)"], {}, 1),
        ("def f(x, k=0): return x / 3 + k", THIRD, {}, 1),
        ("def f(x): return 5", ["assert f(2) == 5", "assert f(3) == 6"], {}, 0),
        ("def f(x): return 5", ["assert f(2) == 5", "assert f(3) == 6"], {"partial": True}, 0.5),
        ("def f(x: return", ["assert f(2) == 5"], {}, 0),
        ("import os; os._exit(0)", ["assert f(2) == 5"], {}, 0),
        ("while True: pass", ["assert f(2) == 5"], {"seconds": 0.5}, 0),
        ("def f(x): return [1] * 10**9", ["assert f(2) == 5"], {}, 0),
        ("print('all tests passed: 1.0')", ["assert f(2) == 5"], {}, 0),
        ("def f(x): return 5", ["import os"], {}, 0),
        ("def f(x): return 5", [], {}, 0),
    ],
    "instruction_following": [
        ("Red and blue.", None, {"instructions": [{"id": "keywords:existence", "keywords": ["red", "blue"]}]}, 1),
        ("Reddish.", None, {"instructions": [{"id": "keywords:existence", "keywords": ["red"]}]}, 0),
        ("one two", None, {"instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
                           "kwargs": [{"num_words": 3, "relation": "less than"}, {}]}, 1),
        ("one, two", None, {"partial": True, "instructions": [{"id": "punctuation:no_comma"},
                                                              {"id": "change_case:english_lowercase"}]}, 0.5),
        ('{"a": [1]}', None, {"instructions": [{"id": "detectable_format:json_format"}]}, 1),
        ('{"a": [1', None, {"instructions": [{"id": "detectable_format:json_format"}]}, 0),
        ("[" * 9000, None, {"instructions": [{"id": "detectable_format:json_format"}]}, 0),
        ("* a\n* b", None, {"instructions": [{"id": "detectable_format:number_bullet_lists", "num_bullets": 2}]}, 1),
        ("Eins. Zwei! Drei?", None, {"instructions": [{"id": "length_constraints:number_sentences",
                                                      "num_sentences": 3, "relation": "at least"}]}, 1),
        ("这是红色的", None, {"instructions": [{"id": "language:response_language", "language": "zh"}]}, 1),
        ("It is red", None, {"instructions": [{"id": "language:response_language", "language": "zh"}]}, 0),
        ("a\n\nb", None, {"instructions": [{"id": "length_constraints:nth_paragraph_first_word", "num_paragraphs": 2,
                                            "nth_paragraph": 2, "first_word": "B"}]}, 1),
        ("<<T>> x", None, {"instructions": [{"id": "detectable_format:title"}]}, 1),
        ("a ****** b", None, {"instructions": [{"id": "combination:two_responses"}]}, 1),
        ("x", None, {"instructions": [{"id": "no:such"}]}, 0),
        ("x", None, {}, 0),
    ],
    "spatial": [("left", "Left", {}, 1), ("right", "left", {}, 0), ("1.50", "1.5", {}, 1)],
    "gui_grounding": [
        ("[[100,100,200,200]]", [100, 100, 200, 200], {}, 1),
        ("[100,100,200,150]", [100, 100, 200, 200], {}, 0.5),
        ("[150,150]", [100, 100, 200, 200], {}, 1),
        ("[50,150]", [100, 100, 200, 200], {}, 0),
        ("[150,150] or [50,50]", [100, 100, 200, 200], {}, 0),
        ("somewhere", [100, 100, 200, 200], {}, 0),
    ],
    "gui_action": [
        ('{"action_type": "navigate_home"}', {"action_type": "navigate_home"}, {}, 1),
        ('{"action_type": "click", "box_2d": [[0,0,100,100]]}', TAP, {}, 0.5),
        ('{"action_type": "click", "box_2d": [[0,0,1000,50]]}', TAP, {}, 0),
        ('{"action_type": "click", "box_2d": [[0,0,100,50]]}', json.dumps(TAP), {}, 1),
        ('{"action_type": "input_text", "text": "abcd"}', {"action_type": "input_text", "text": "abxd"}, {}, 0.75),
        ('{"action_type": "wait"}', {"action_type": "click", "box_2d": [[0, 0, 9, 9]]}, {}, 0),
        ('{"action_type": "wait", "x": 1}', {"action_type": "wait"}, {}, 0),
        ("left_click(start_box='[500,300]')", "left_click(start_box='[500,300]', element_info='OK')", {}, 1),
        ("left_click(start_box='[510,300]')", "left_click(start_box='[500,300]')", {}, 0.9),
        ("left_click(start_box='[530,300]')", "left_click(start_box='[500,300]')", {}, 0.4),
        ("right_click(start_box='[500,300]')", "left_click(start_box='[500,300]')", {}, 0),
        ("key(keys='ctrl+c')", "key(keys='ctrl+c')", {}, 1),
        ("key(keys='ctrl+v')", "key(keys='ctrl+c')", {}, 0),
        ("type(content='abc')", "type(content='abc')", {}, 1),
        ("DONE()", "DONE", {}, 1),
        ("Click [3]", "Click [3]", {}, 1),
        ("Click [4]", "Click [3]", {}, 0),
        ("Type [3]; [abcd]", "Type [3]; [abxd]", {}, 0.75),
        ("Scroll [WINDOW]; [up]", "Scroll [WINDOW]; [down]", {}, 0),
        ("os.system('x')", "DONE", {}, 0),
        ("{" * 5000, {"action_type": "wait"}, {}, 0),
        ("Click" + " " * 15_000 + "x", "Click [3]", {}, 0),
    ],
    "video_qa": [("a red ball", "red ball", {}, 1), ("B", "B", {"choices": ["a", "b"]}, 1), ("blue", "red", {}, 0)],
    "long_document": [
        ("Not answerable", "unanswerable", {}, 1),
        ("Paris", "Not answerable", {}, 0),
        ("cannot be answered", "Paris", {}, 0),
        ("12.01", "12", {}, 1),
        ('["b", "a"]', ["a", "b"], {"all": True}, 1),
        ("a, b", ["a", "b"], {"all": True}, 1),
        ("a", ["a", "b"], {"all": True}, 0),
        ("a", ["a", "b"], {}, 1),
    ],
    "geo": [
        ("[48.8584, 2.2945]", [48.8584, 2.2945], {}, 1),
        ("48.8584° N, 2.2945° E", "48.8584, 2.2945", {}, 1),
        ("Paris", [48.8584, 2.2945], {}, 0),
        ("[948.8, 2.2]", [48.8584, 2.2945], {}, 0),
        ('{"address": "France, Paris", "name": "eiffel tower"}', TOWER, {}, 1),
        ("Eiffel Tower", TOWER, {}, 0.5),
        ("Rome", "Paris", {}, 0),
    ],
    "logic": [
        ("Ann: knight, Bob: knave", "Bob: knave; Ann: knight", {}, 1),
        ("Ann is a knight and Bob is a knave", "Ann: knight, Bob: knave", {}, 1),
        ('{"Ann": "knight"}', {"ann": "Knight"}, {}, 1),
        ("Ann: knave, Bob: knave", "Ann: knight, Bob: knave", {}, 0),
        ("[[1,2],[2,1]]", [[1, 2], [2, 1]], {}, 1),
        ("[[2,1],[1,2]]", [[1, 2], [2, 1]], {}, 0),
        ("A > B > C", "A>B>C", {}, 1),
        ("B > A > C", "A>B>C", {}, 0),
        ("yes", "True", {}, 1),
        ("[" * 1000, [[1]], {}, 0),
        ("[NaN]", [[1]], {}, 0),
    ],
    "multiple_choice": [
        ("B", "B", {}, 1),
        ("(B)", "B", {}, 1),
        ("b.", "B", {}, 1),
        ("B. a dog", "B", {}, 1),
        ("The answer is B", "B", {}, 1),
        ("a dog", "B", {"choices": ["a cat", "a dog"]}, 1),
        ("B", "a dog", {"choices": ["a cat", "a dog"]}, 1),
        ("A, C", "AC", {}, 1),
        ("CA", ["A", "C"], {}, 1),
        ("A", "AC", {}, 0),
        ("A or B", "B", {}, 0),
        ("A B C D", "B", {}, 0),
        ("A. a cat B. a dog", "B", {}, 0),
        ("E", "B", {"choices": ["a cat", "a dog"]}, 0),
        ("A" + " " * 1900 + "!", "A", {}, 0),
        ("B" * 5000, "B", {}, 0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("domain", TABLES)
def test_table(judge: Judge, domain: str) -> None:
    rewards(judge, domain, TABLES[domain])
