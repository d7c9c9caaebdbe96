"""Items as conversations in the chat shape, with their media encoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_glmv.data.synthetic.encode import JPEG, MP4, PNG, WEBM, encode_image, encode_video
from megatron_glmv.data.synthetic.family import Family, Item
from megatron_glmv.data.synthetic.seeds import stream
from megatron_glmv.data.synthetic.task import Turn
from megatron_glmv.data.types import IMAGE, VIDEO, Json

SUFFIXES = {IMAGE: (PNG, PNG, PNG, JPEG), VIDEO: (WEBM, WEBM, WEBM, MP4)}
"""Formats of the media of a domain, one of them drawn for each item."""


@dataclass(frozen=True)
class Sample:
    """One item of a family, encoded. `media` is empty where nothing is shown."""

    key: str
    domain: str
    turns: tuple[Turn, ...]
    media: dict[str, bytes]
    """Member name -> bytes; at most one."""

    def conversation(self) -> Json:
        """Every question and answer as consecutive turns, the medium in the first."""
        messages: list[Json] = []
        for number, asked in enumerate(self.turns):
            messages.append(self.question(asked, list(self.media) if number == 0 else []))
            messages.append({"role": "assistant", "content": asked.answer})
        turns = [{"task": t.task, "tier": t.tier, "answer": t.answer, "choices": list(t.choices)} for t in self.turns]
        return {"id": self.key, "domain": self.domain, "messages": messages, "turns": turns}

    def question(self, asked: Turn, shown: list[str]) -> Json:
        """One user message that shows the named media in front of the question."""
        parts: list[Json] = [{"type": self.domain, self.domain: name} for name in shown]
        return {"role": "user", "content": [*parts, {"type": "text", "text": asked.text}]}


def make_sample(family: Family, seed: int, split: str, index: int) -> Sample:
    """Sample `index` of a family: the same bytes in any process."""
    rng = stream(seed, split, family.name, index)
    item = family.item(rng)
    return Sample(f"{family.name}-{index:07d}", family.domain, item.turns, encode_item(family, item, rng))


def encode_item(family: Family, item: Item, rng: np.random.Generator) -> dict[str, bytes]:
    """Member name -> bytes of an item's medium, in a format of its domain; empty where nothing is shown."""
    if item.pixels is None:
        return {}
    suffixes = SUFFIXES[family.domain]
    suffix = suffixes[int(rng.integers(len(suffixes)))]
    encode = encode_image if family.domain == IMAGE else encode_video
    return {f"0.{suffix}": encode(item.pixels, suffix)}
