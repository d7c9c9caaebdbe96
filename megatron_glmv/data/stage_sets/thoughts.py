"""A short chain of thought for each family of the demo set: what is seen, then what follows for the question.

A thought is a function of what was drawn, so it is always right; it describes the whole scene, so that it teaches every
attribute whichever one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_glmv.data.synthetic.chart import Chart
from megatron_glmv.data.synthetic.clip import Clip
from megatron_glmv.data.synthetic.cycle import Cycle
from megatron_glmv.data.synthetic.lights import Lights
from megatron_glmv.data.synthetic.still import Still
from megatron_glmv.data.synthetic.task import Turn


def _still(scene: Still, asked: Turn) -> str:
    return f"{scene.colour} {scene.shape} {scene.place}, {scene.count} marks, digit {scene.digit}"


def _chart(scene: Chart, asked: Turn) -> str:
    return ", ".join(f"{colour} {height}" for colour, height in zip(scene.colours, scene.heights, strict=True))


def _clip(scene: Clip, asked: Turn) -> str:
    return f"{scene.colour} {scene.shape} first {scene.start}, {scene.direction}, last {scene.end}"


def _ordered(scene: Lights | Cycle, asked: Turn) -> str:
    return "first " + ", ".join(scene.order)


def _text(scene: None, asked: Turn) -> str:
    """Nothing is shown: the question itself is worked on."""
    question = asked.text.rstrip("?")
    if asked.task == "sum":
        first, second = (int(word) for word in question.removeprefix("what is ").split(" + "))
        return " ".join(str(first + step) for step in range(second + 1))  # counted on
    if asked.task == "recall":
        listed, _, which = question.partition(": which is the ")
        return f"{which} of {', '.join(listed.split())}"
    return question.removeprefix("what is ")


_SEEN: dict[str, Callable[[Any, Turn], str]] = {
    "still": _still,
    "chart": _chart,
    "clip": _clip,
    "lights": _ordered,
    "cycle": _ordered,
    "text": _text,
}


def thought(family: str, scene: Any, asked: Turn) -> str:
    """The chain of thought that leads to `asked.answer`. Raises KeyError for a family without one."""
    return f"{_SEEN[family](scene, asked)}: {asked.answer}"
