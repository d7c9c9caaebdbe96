"""Conversations for supervised fine-tuning, from the demo set's families (arXiv 2507.01006, section 4).

With thinking: one or two turns, each with its chain of thought; the template drops that of the earlier one. Without:
every question of the scene, with an empty thought. The answer is the same in both, in exactly one box: the paper takes
the answer part of its thinking examples for the other mode. Some sums are worked out by a tool that is called.
The template makes GLM-4.5V's or GLM-4.1V's form of it.
"""

from __future__ import annotations

from typing import Any

from megatron_glmv.data.stage_sets.thoughts import thought
from megatron_glmv.data.synthetic.conversation import Sample, encode_item
from megatron_glmv.data.synthetic.family import Family, Item
from megatron_glmv.data.synthetic.seeds import stream
from megatron_glmv.data.synthetic.task import Turn, turn
from megatron_glmv.data.types import Json

THINKING_SHARE = 0.6
"""Of the samples; a thinking one has about a third of the answers of another. The paper gives no ratio."""
TOOL_SHARE = 0.5
"""Of the samples that end with a sum."""
TOOL = 'tools: add, with "a" and "b"'
BOX, END_BOX = "<|begin_of_box|>", "<|end_of_box|>"


def boxed(answer: str) -> str:
    return f"{BOX}{answer}{END_BOX}"


def make(family: Family, seed: int, split: str, index: int) -> tuple[str, Json, dict[str, bytes]]:
    """(key, conversation, media) of sample `index`: the same bytes in any process, and no scene of the demo set."""
    rng = stream(seed, split, f"sft-{family.name}", index)
    scene = family.draw(rng)
    order = rng.permutation(len(family.asked))
    asked = tuple(turn(family.asked[i], scene, rng) for i in order)
    thinking = bool(rng.random() < THINKING_SHARE)
    if thinking:
        asked = asked[: int(rng.integers(1, 3))]
    media = encode_item(family, Item(getattr(scene, "pixels", None), asked), rng)
    sample = Sample(f"sft-{family.name}-{index:07d}", family.domain, asked, media)
    if asked[-1].task == "sum" and rng.random() < TOOL_SHARE:
        messages = _with_tool(sample, asked[-1], thinking)
    else:
        messages = _messages(sample, family, scene, thinking)
    about = {"id": sample.key, "domain": family.domain, "task": asked[-1].task, "thinking": thinking}
    return sample.key, {**about, "verifiable": True, "messages": messages}, media


def _messages(sample: Sample, family: Family, scene: Any, thinking: bool) -> list[Json]:
    messages: list[Json] = []
    for number, asked in enumerate(sample.turns):
        messages.append(sample.question(asked, list(sample.media) if number == 0 else []))
        reasoning = thought(family.name, scene, asked) if thinking else ""
        messages.append({"role": "assistant", "reasoning_content": reasoning, "content": boxed(asked.answer)})
    return messages


def _with_tool(sample: Sample, asked: Turn, thinking: bool) -> list[Json]:
    """One sum, worked out by a tool."""
    first, second = asked.text.rstrip("?").removeprefix("what is ").split(" + ")
    call = {"function": {"name": "add", "arguments": {"a": first, "b": second}}}
    return [
        {"role": "system", "content": TOOL},
        sample.question(asked, []),
        {"role": "assistant", "reasoning_content": "add" if thinking else "", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": asked.answer},
        {
            "role": "assistant",
            "reasoning_content": asked.answer if thinking else "",
            "content": boxed(asked.answer),
        },
    ]
