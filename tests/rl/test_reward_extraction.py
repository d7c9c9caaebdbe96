"""Taking responses apart: both models' forms, and every way of being malformed."""

from __future__ import annotations

import pytest

from megatron_glmv.rl.rewards import style
from megatron_glmv.rl.rewards.extraction import take_apart
from megatron_glmv.rl.rewards.types import FORBIDDEN, OPTIONAL, REQUIRED

B, E = "<|begin_of_box|>", "<|end_of_box|>"

WELL_FORMED = {
    "glm45v": (f"<think>so</think>\nIt is {B}4{E}.", "so", "4"),
    "glm41v": (f"<think>so</think><answer>It is {B}4{E}</answer>", "so", "4"),
    "no thinking": (f"It is {B} 4 {E}", "", "4"),
    "empty thinking": (f"<think></think>\n{B}4{E}", "", "4"),
    "turn ended": (f"<think>so</think>{B}4{E}<|user|>", "so", "4"),
    "box in the thinking": (f"<think>{B}1{E} or {B}2{E}</think>{B}4{E}", f"{B}1{E} or {B}2{E}", "4"),
    "lines": (f"<think>a\nb</think>\n\n{B}x\ny{E}", "a\nb", "x\ny"),
}

MALFORMED = {
    "unclosed thinking": (f"<think>{B}4{E}", "not closed"),
    "closed only": (f"so</think>{B}4{E}", "never opened"),
    "thought twice": (f"<think>a</think><think>b</think>{B}4{E}", "exactly one"),
    "nested thinking": (f"<think><think></think>{B}4{E}", "exactly one"),
    "text before": (f"hm <think>a</think>{B}4{E}", "in front of"),
    "answer in thinking": (f"<think><answer></think>{B}4{E}</answer>", "inside the thinking"),
    "answer unclosed": (f"<think>a</think><answer>{B}4{E}", "exactly one"),
    "two answers": (f"<answer>{B}4{E}</answer><answer>{B}4{E}</answer>", "exactly one"),
    "text behind": (f"<answer>{B}4{E}</answer> or so", "outside"),
    "no box": ("<think>a</think>4", "no boxed answer"),
    "nothing": ("", "no answer"),
    "two boxes": (f"{B}4{E}{B}5{E}", "exactly one"),
    "nested box": (f"{B}{B}4{E}", "exactly one"),
    "box unclosed": (f"{B}4", "exactly one"),
    "box backwards": (f"{E}4{B}", "before it opens"),
    "boxed too": (f"\\boxed{{4}} {B}4{E}", "beside the box"),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_well_formed(name: str) -> None:
    response, thinking, final = WELL_FORMED[name]
    parts = take_apart(response)
    assert (parts.fault, parts.thinking, parts.final) == ("", thinking, final)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name: str) -> None:
    response, said = MALFORMED[name]
    parts = take_apart(response)
    assert parts.final is None
    assert said in parts.fault


def test_the_prompt_may_have_opened_the_thinking() -> None:
    assert take_apart(f"so</think>{B}4{E}", thinking_opened=True).final == "4"
    assert take_apart(f"<think>so</think>{B}4{E}", thinking_opened=True).final == "4"
    assert take_apart(f"{B}4{E}", thinking_opened=True).fault == "the thinking is not closed"


@pytest.mark.parametrize(
    ("box", "answer", "final"),
    [
        (OPTIONAL, "red", "red"),
        (OPTIONAL, f"{B}red{E}", "red"),
        (OPTIONAL, f"{B}a{E}{B}b{E}", None),
        (FORBIDDEN, "a poem", "a poem"),
        (FORBIDDEN, f"{B}a poem{E}", None),
        (REQUIRED, "red", None),
    ],
)
def test_who_demands_a_box(box: str, answer: str, final: str | None) -> None:
    assert take_apart(answer, box).final == final


CHINESE = "我们先看图中的每一个柱子然后把它们的高度加起来再除以柱子的数目得到平均值" * 2
ENGLISH = " ".join(f"word{'abcdefghij'[n % 10]} and thing{'klmnopqrst'[n // 10 % 10]}" for n in range(100))
STYLES = {
    "plain": ("A short answer. " * 3, ""),
    "chinese": (CHINESE, ""),
    "english": (ENGLISH, ""),
    "a few foreign words": (CHINESE + "\nThe bar chart, see above.", ""),
    "mixed": (CHINESE + "\n" + ENGLISH, "Chinese and an English"),
    "repeated": ("I look at the picture again and count the bars once more. " * 12, "characters that come"),
    "nine times": ("I look at the picture again and count the bars once more. " * 9, ""),
    "a rule of dashes": ("-" * 5000, ""),
}


@pytest.mark.parametrize("name", STYLES)
def test_style(name: str) -> None:
    text, said = STYLES[name]
    assert (said in style.fault(text)) if said else (style.fault(text) == "")
