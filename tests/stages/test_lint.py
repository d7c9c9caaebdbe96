"""What the lint drops, with one fault planted in each conversation; the generator's own data pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_glmv.data.stage_sets.sft import boxed, make
from megatron_glmv.data.synthetic.registry import FAMILIES
from megatron_glmv.evaluate import lint as lints
from megatron_glmv.evaluate.lint import faults, lint

CHINESE = "这是一个很长的中文段落，用来检查语言混合的规则是否有效。" * 3
ENGLISH = " ".join(f"word{n % 7} and some other english words follow here" for n in range(40))


def conversation(answer: str = "", **fields: Any) -> dict[str, Any]:
    said = {"role": "assistant", "reasoning_content": "It is red.", "content": answer or f"It is {boxed('red')}."}
    asked = {"role": "user", "content": "Which colour?"}
    return {"id": "a", "verifiable": True, "thinking": True, "messages": [asked, said], **fields}


def with_thought(thought: str | None) -> dict[str, Any]:
    made = conversation()
    made["messages"][1]["reasoning_content"] = thought
    if thought is None:
        del made["messages"][1]["reasoning_content"]
    return made


@pytest.mark.parametrize(
    ("made", "check"),
    [
        (conversation(), None),
        (conversation("plain", verifiable=False), None),
        (conversation(messages=[]), lints.SHAPE),
        (conversation(messages=[{"role": "document", "content": "x"}]), lints.SHAPE),
        (conversation(messages=[{"role": "user", "content": "x"}]), lints.SHAPE),
        (conversation(messages=[{"role": "assistant", "content": boxed("x")}]), lints.SHAPE),
        (conversation(f"</think>{boxed('red')}"), lints.FORM),
        (conversation(f"<answer>{boxed('red')}</answer>"), lints.FORM),
        (conversation("red"), lints.BOX),
        (conversation(boxed("red") + boxed("red")), lints.BOX),
        (conversation(verifiable=False), lints.BOX),
        (with_thought(""), lints.THINKING),
        (with_thought(None), lints.THINKING),
        (conversation(thinking=False), lints.THINKING),
        (with_thought(f"{CHINESE}\n{ENGLISH}"), lints.LANGUAGE),
        (with_thought("Let me look at the picture again. " * 3 + "Red."), lints.REDUNDANCY),
        (with_thought("abcdefghij klmno " * 40), lints.REDUNDANCY),
    ],
)
def test_each_fault_is_found_by_its_own_check(made: dict[str, Any], check: str | None) -> None:
    found = list(faults(made))
    assert (found[0].check if found else None) == check, found


def test_answer_tags_are_glm41vs_form_and_not_glm45vs() -> None:
    tagged = conversation(f"<answer>{boxed('red')}</answer>")
    assert list(faults(tagged, "glm41v")) == []


def test_a_turn_without_loss_is_not_looked_at() -> None:
    made = conversation()
    bad = {"role": "assistant", "content": "</think>", "weight": 0}
    made["messages"] = [{"role": "user", "content": "x"}, bad, *made["messages"]]
    assert list(faults(made)) == []
    bad["weight"] = 1
    assert [fault.check for fault in faults(made)] == [lints.FORM]


def test_a_file_is_reported_and_cleaned(tmp_path: Path) -> None:
    lines = [json.dumps(conversation()), "", json.dumps(conversation("red", id="b")), "not json", "[1]"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    report = lint(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (report.lines, report.kept, report.dropped) == (4, 1, {"shape": 2, "box": 1})
    assert (tmp_path / "out.jsonl").read_text() == lines[0] + "\n"
    dropped = [json.loads(line) for line in (tmp_path / "out.dropped.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["id"]) for entry in dropped] == [(3, "b"), (4, None), (5, None)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_generator_makes_is_sound_and_right(family: str) -> None:
    thinking = tools = 0
    for index in range(60):
        key, made, _ = make(FAMILIES[family], 0, "train", index)
        assert list(faults(made)) == [], key
        thinking += made["thinking"]
        tools += any("tool_calls" in message for message in made["messages"])
        for message in made["messages"]:
            if message["role"] == "assistant" and message.get("reasoning_content") and not message.get("tool_calls"):
                said = message["content"].removeprefix("<|begin_of_box|>").removesuffix("<|end_of_box|>")
                assert said in message["reasoning_content"].split(": ")[-1]
    assert 20 < thinking < 52 and (tools > 0) == (family == "text")
    assert make(FAMILIES[family], 0, "train", 3) == make(FAMILIES[family], 0, "train", 3)
    assert make(FAMILIES[family], 0, "train", 3)[1] != make(FAMILIES[family], 0, "val", 3)[1]
