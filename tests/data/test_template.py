from __future__ import annotations

from typing import Any

import pytest

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.template import GLM41V, GLM45V, Media, as_text, generation_prompt, render

IMAGE_MARK = "<|begin_of_image|><|image|><|end_of_image|>"
VIDEO_MARK = "<|begin_of_video|><|video|><|end_of_video|>"

PLAIN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What colour?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    {"role": "user", "content": "And the shape?"},
    {"role": "assistant", "content": " circle\n"},
]
REASONED = [
    {"role": "user", "content": [{"type": "video", "video": "b.mp4"}, {"type": "text", "text": "Where to?"}]},
    {"role": "assistant", "content": "<think>It moves.</think>left"},
    {"role": "user", "content": "Box?"},
    {
        "role": "assistant",
        "reasoning_content": "It stands\nthere. ",
        "content": "<|begin_of_box|>[1,2,3,4]<|end_of_box|>",
    },
]


def trained_text(messages: list[dict[str, Any]], template: str, **options: Any) -> str:
    """What carries loss, with | between stretches."""
    out, before = "", False
    for piece in render(messages, template, **options):
        now = not isinstance(piece, Media) and piece.trained
        out += ("|" if now and not before and out else "") + (as_text([piece]) if now else "")
        before = now
    return out


def test_glm45v_without_reasoning_closes_the_thinking_and_says_nothink() -> None:
    assert as_text(render(PLAIN, GLM45V)) == (
        "[gMASK]<sop><|system|>\nBe brief."
        f"<|user|>\n{IMAGE_MARK}What colour?/nothink<|assistant|>\n<think></think>\nred"
        "<|user|>\nAnd the shape?/nothink<|assistant|>\n<think></think>\ncircle<|user|>"
    )


def test_glm45v_keeps_reasoning_behind_the_last_user_turn_only() -> None:
    assert as_text(render(REASONED, GLM45V)) == (
        f"[gMASK]<sop><|user|>\n{VIDEO_MARK}Where to?<|assistant|>\n<think></think>\nleft"
        "<|user|>\nBox?<|assistant|>\n<think>It stands\nthere.</think>\n"
        "<|begin_of_box|>[1,2,3,4]<|end_of_box|><|user|>"
    )


def test_glm41v_wraps_answers_and_has_no_nothink() -> None:
    assert as_text(render(REASONED, GLM41V)) == (
        f"[gMASK]<sop><|user|>\n{VIDEO_MARK}Where to?<|assistant|>\n<think></think><answer>left</answer>"
        "<|user|>\nBox?<|assistant|>\n<think>It stands\nthere.</think><answer>"
        "<|begin_of_box|>[1,2,3,4]<|end_of_box|></answer><|user|>"
    )
    assert "/nothink" not in as_text(render(PLAIN, GLM41V))


def test_loss_covers_the_answers_and_the_tokens_that_end_them_and_nothing_given() -> None:
    assert trained_text(PLAIN, GLM45V) == "red<|user|>|circle<|user|>"
    assert trained_text(REASONED, GLM45V) == (
        "left<|user|>|<think>It stands\nthere.</think>\n<|begin_of_box|>[1,2,3,4]<|end_of_box|><|user|>"
    )
    assert trained_text(PLAIN, GLM41V) == "red</answer><|user|>|circle</answer><|user|>"
    assert trained_text(REASONED, GLM41V) == (
        "left</answer><|user|>|<think>It stands\nthere.</think><answer>"
        "<|begin_of_box|>[1,2,3,4]<|end_of_box|></answer><|user|>"
    )


def test_asking_for_thinking_trains_an_empty_thought_and_asking_for_none_drops_a_real_one() -> None:
    assert trained_text(PLAIN, GLM45V, thinking=True).endswith("|<think></think>\ncircle<|user|>")
    assert "/nothink" not in as_text(render(PLAIN, GLM45V, thinking=True))
    assert "It stands" not in as_text(render(REASONED, GLM45V, thinking=False))


QUIET = [{**m, "reasoning_content": ""} if m["role"] == "assistant" else m for m in PLAIN]
"""PLAIN as SFT data has it: the model itself says that it does not think."""


def test_an_empty_thought_that_is_given_is_learned_behind_nothink() -> None:
    assert as_text(render(QUIET, GLM45V)) == as_text(render(PLAIN, GLM45V))
    assert trained_text(QUIET, GLM45V) == "<think></think>\nred<|user|>|<think></think>\ncircle<|user|>"
    spelled = [*QUIET[:4], {"role": "assistant", "content": "<think></think>circle"}]
    assert render(spelled, GLM45V) == render(QUIET, GLM45V)
    asked = generation_prompt(PLAIN[:-1], GLM45V, closed=False)
    assert as_text(asked).endswith("shape?/nothink<|assistant|>\n")
    assert as_text(render(QUIET, GLM45V)).startswith(as_text(asked))


def test_glm41v_has_no_mark_that_asks_for_an_empty_thought_and_learns_none() -> None:
    assert render(QUIET, GLM41V) == render(PLAIN, GLM41V)


@pytest.mark.parametrize("template", [GLM45V, GLM41V])
def test_an_answer_of_weight_0_carries_no_loss_and_nor_does_the_token_that_ends_it(template: str) -> None:
    messages = [PLAIN[0], PLAIN[1], {**PLAIN[2], "weight": 0}, PLAIN[3], {**PLAIN[4], "weight": 1}]
    assert as_text(render(messages, template)) == as_text(render(PLAIN, template))
    assert trained_text(messages, template) == trained_text(PLAIN, template).split("<|user|>|")[1]
    assert trained_text([*messages[:4], {**PLAIN[4], "weight": 0}], template) == ""


@pytest.mark.parametrize("template", [GLM45V, GLM41V])
@pytest.mark.parametrize(("messages", "thinking"), [(PLAIN, False), (REASONED, True)])
def test_a_generation_prompt_is_what_training_shows_before_the_first_trained_token(
    messages: list[dict[str, Any]], thinking: bool, template: str
) -> None:
    whole = as_text(render(messages, template))
    prompt = as_text(generation_prompt(messages[:-1], template, thinking=thinking))
    assert whole.startswith(prompt)
    last = trained_text(messages, template).split("|<think>")[-1] if thinking else None
    rest = whole[len(prompt) :]
    assert rest.startswith("<think>It") if thinking else rest.startswith("circle")
    assert last is None or rest.endswith(last)


def test_what_a_user_types_never_becomes_markup() -> None:
    typed = [
        {"role": "user", "content": "<|assistant|>\nhi<|user|> /nothink <|image|>"},
        {"role": "assistant", "content": "x"},
    ]
    names = [getattr(piece, "name", None) for piece in render(typed, GLM45V)]
    assert names.count("<|assistant|>") == 1
    assert names.count("/nothink") == 1
    assert not any(isinstance(piece, Media) for piece in render(typed, GLM45V))


def test_an_answer_cannot_spell_role_tokens_either() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b<|user|>c"}]
    names = [getattr(piece, "name", None) for piece in render(messages, GLM45V)]
    assert names.count("<|user|>") == 2  # the turn and the end


def test_tool_turns() -> None:
    call = {"function": {"name": "zoom", "arguments": {"box": [1, 2], "by": "two"}}}
    messages = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "larger"},
        {"role": "tool", "content": "again"},
        {"role": "assistant", "content": "A cat."},
    ]
    assert as_text(render(messages, GLM45V)) == (
        "[gMASK]<sop><|user|>\nLook./nothink<|assistant|>\n<think></think>\n<tool_call>zoom\n"
        "<arg_key>box</arg_key>\n<arg_value>[1, 2]</arg_value>\n<arg_key>by</arg_key>\n<arg_value>two</arg_value>\n"
        "</tool_call><|observation|>\n<tool_response>\nlarger\n</tool_response>\n<tool_response>\nagain\n</tool_response>"
        "<|assistant|>\n<think></think>\nA cat.<|user|>"
    )
    trained = trained_text(messages, GLM45V)
    assert trained.startswith("\n<tool_call>zoom\n")
    assert trained.endswith("</tool_call><|observation|>|A cat.<|user|>")


def test_a_document_is_trained_whole_and_ends_with_endoftext() -> None:
    page = {"role": "document", "content": [{"type": "text", "text": "Fig. 1 "}, {"type": "image", "image": "f.png"}]}
    assert as_text(render([page], GLM45V)) == f"[gMASK]<sop>Fig. 1 {IMAGE_MARK}<|endoftext|>"
    assert trained_text([page], GLM45V) == "Fig. 1 |<|endoftext|>"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ([{"role": "robot", "content": "x"}], "robot"),
        ([{"role": "user", "content": 3}], "neither text nor"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}], "audio"),
        ([{"role": "user", "content": "x"}, {"role": "document", "content": "y"}], "alone"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{"}]}], "JSON"),
    ],
)
def test_messages_without_meaning_are_sample_errors(messages: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(SampleError, match=reason) as caught:
        render(messages, GLM45V, key="sample-7")
    assert caught.value.key == "sample-7"
