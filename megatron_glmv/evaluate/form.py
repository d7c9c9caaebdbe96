"""How a model is asked to think, and whether it did as it was asked.

The template closes the thinking itself in mode `answer`, so that nothing can be learned there about whether the model
would. In the other two modes the prompt ends behind `<|assistant|>`, and what the model writes is counted:

    nothink    the user turn ends with /nothink: the thought has to be there and empty
    think      it does not: exactly one thought, closed, with something in it, and an answer behind it
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.types import Json
from megatron_glmv.inference.completion import STOP, Completion
from megatron_glmv.rl.rewards.extraction import ANSWER as OPENS_ANSWER
from megatron_glmv.rl.rewards.extraction import BOX, END_ANSWER, take_apart
from megatron_glmv.rl.rewards.extraction import THINK as OPENS_THINKING
from megatron_glmv.rl.rewards.types import OPTIONAL

ANSWER, NOTHINK, THINK = "answer", "nothink", "think"
MODES = (ANSWER, NOTHINK, THINK)


def check_mode(mode: str) -> None:
    """Raises ConfigError."""
    if mode not in MODES:
        raise ConfigError("--mode", mode, "is no way to ask", f"one of {', '.join(MODES)}")


def whole(reply: Completion) -> str:
    """A reply with `</answer>` where that is the token it stopped at (GLM-4.1V)."""
    open_answer = reply.finish == STOP and OPENS_ANSWER in reply.text and END_ANSWER not in reply.text
    return reply.text + END_ANSWER if open_answer else reply.text


def form_of(replies: Sequence[Completion]) -> Json:
    """Shares of the replies: one well-formed thought with an answer behind it, and empty or not; exactly one box."""
    formed = full = empty = boxed = 0
    for reply in replies:
        text = whole(reply)
        parts = take_apart(text, OPTIONAL)
        ok = reply.finish == STOP and not parts.fault and text.startswith(OPENS_THINKING) and parts.answer != ""
        formed += ok
        full += ok and parts.thinking.strip() != ""
        empty += ok and parts.thinking.strip() == ""
        boxed += ok and text.count(BOX) == 1
    count = max(1, len(replies))
    return {
        "well_formed": formed / count,
        "one_thought": full / count,
        "empty_thought": empty / count,
        "one_box": boxed / count,
    }
