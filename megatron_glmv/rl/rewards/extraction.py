"""The parts of a response: thinking, answer, boxed final answer; and whether it is well formed.

Both models' forms are read, as the paper (arXiv 2507.01006, 5.2) and the released reward code have them:

    GLM-4.5V        <think>T</think>A                 A holds <|begin_of_box|>F<|end_of_box|>
    GLM-4.1V-9B     <think>T</think><answer>A</answer>

T thinking, A answer segment, F final answer. Thinking may be left out (the models' /nothink mode). Only counting and
slicing happens here, so the time is linear in the response.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_glmv.rl.rewards.types import FORBIDDEN, REQUIRED

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
BOX, END_BOX = "<|begin_of_box|>", "<|end_of_box|>"
STOPS = ("<|endoftext|>", "<|user|>", "<|observation|>", "<|assistant|>", "<eop>")
"""Tokens that end a turn; an engine may leave one at the end of its text."""


@dataclass(frozen=True)
class Parts:
    """A response taken apart. `fault` says what is malformed; the other fields are what could be read all the same."""

    thinking: str
    answer: str
    """A, the box markers still in it."""
    final: str | None
    """F; where no box is required and none is there, all of A."""
    fault: str = ""

    @property
    def prose(self) -> str:
        """A without its box: what the style checks read."""
        before, _, rest = self.answer.partition(BOX)
        return f"{before} {rest.partition(END_BOX)[2]}"


def take_apart(response: str, box: str = REQUIRED, *, thinking_opened: bool = False) -> Parts:
    """The parts of a response. `box` is the verifier's demand; `thinking_opened`: the prompt held the <think>."""
    text = response.strip()
    for stop in STOPS:
        text = text.removesuffix(stop).rstrip()
    if thinking_opened and not text.startswith(THINK):
        text = THINK + text
    thinking, answer, fault = _split_thinking(text)
    if not fault:
        answer, fault = _unwrap_answer(answer)
    if fault:
        return Parts(thinking, answer, None, fault)
    final, fault = _unbox(answer, box)
    return Parts(thinking, answer, final, fault)


def _split_thinking(text: str) -> tuple[str, str, str]:
    """(T, what follows, fault)."""
    opens, closes = text.count(THINK), text.count(END_THINK)
    if opens == closes == 0:
        return "", text, ""
    if closes == 0:
        return text, "", "the thinking is not closed"
    if opens == 0:
        return "", text, "the thinking is closed but never opened"
    if opens > 1 or closes > 1:
        return "", text, f"{opens} <think> and {closes} </think>: exactly one of each"
    if not text.startswith(THINK):
        return "", text, "text in front of <think>"
    thinking, _, rest = text[len(THINK) :].partition(END_THINK)
    if ANSWER in thinking or END_ANSWER in thinking:
        return thinking, rest, "<answer> inside the thinking"
    return thinking, rest.strip(), ""


def _unwrap_answer(answer: str) -> tuple[str, str]:
    """(A, fault)."""
    opens, closes = answer.count(ANSWER), answer.count(END_ANSWER)
    if opens == closes == 0:
        return answer, ""
    if (opens, closes) != (1, 1):
        return answer, f"{opens} <answer> and {closes} </answer>: exactly one of each"
    if not (answer.startswith(ANSWER) and answer.endswith(END_ANSWER)):
        return answer, "text outside <answer>"
    return answer[len(ANSWER) : -len(END_ANSWER)].strip(), ""


def _unbox(answer: str, box: str) -> tuple[str | None, str]:
    """(F, fault)."""
    opens, closes = answer.count(BOX), answer.count(END_BOX)
    if box == FORBIDDEN:
        return (None, "a box in an answer that is not verifiable") if opens or closes else (answer, "")
    if opens == closes == 0 and box != REQUIRED:
        return answer, ""
    if opens == closes == 0:
        return None, "no boxed answer" if answer else "no answer"
    if (opens, closes) != (1, 1):
        return None, f"{opens} {BOX} and {closes} {END_BOX}: exactly one of each"
    start, end = answer.index(BOX), answer.index(END_BOX)
    if end < start:
        return None, "the box closes before it opens"
    if box == REQUIRED and "\\boxed{" in answer:
        return None, "\\boxed beside the box"
    return answer[start + len(BOX) : end].strip(), ""
