"""Long samples for the long-context stage: documents of many pages, each a picture with what stands under it.

A `document` is read (all of its captions carry loss); a `pages` sample is asked about: the page that a question names
is one of many, each as likely. Lengths are spread evenly in their logarithm up to the budget.
"""

from __future__ import annotations

import math

import numpy as np

from megatron_glmv.data.stage_sets.thoughts import thought
from megatron_glmv.data.synthetic.conversation import encode_item
from megatron_glmv.data.synthetic.family import Family, Item
from megatron_glmv.data.synthetic.seeds import stream
from megatron_glmv.data.synthetic.task import Turn, turn
from megatron_glmv.data.types import Json

DOCUMENT, PAGES = "document", "pages"
PAGE_TOKENS = 44
"""Upper bound of what a page takes: 16 visual tokens, 2 of markup, its number and its caption (33 on average)."""
FEWEST = 8
QUESTIONS = 6


def make(
    kind: str, family: Family, budget: int, seed: int, split: str, index: int
) -> tuple[str, Json, dict[str, bytes]]:
    """(key, conversation, media) of sample `index` of at most `budget` tokens: the same bytes in any process.

    Raises ValueError for a family that draws no pictures, or a budget below FEWEST pages.
    """
    most = budget // PAGE_TOKENS
    if family.domain != "image" or most < FEWEST:
        raise ValueError(
            f"pages need a family of pictures and {FEWEST * PAGE_TOKENS} tokens, got {family.name}, {budget}"
        )
    rng = stream(seed, split, f"long-{kind}", index)
    count = math.floor(math.exp(rng.uniform(math.log(FEWEST), math.log(most + 1))))
    scenes = [family.draw(rng) for _ in range(count)]
    media: dict[str, bytes] = {}
    for number, scene in enumerate(scenes):
        ((name, data),) = encode_item(family, Item(scene.pixels, ()), rng).items()
        media[f"{number}{name[1:]}"] = data
    shown = [{"type": "image", "image": name} for name in media]
    key = f"long-{kind}-{index:07d}"
    about = {"id": key, "domain": kind, "task": kind}
    if kind == DOCUMENT:
        content: list[Json] = []
        for number, (scene, part) in enumerate(zip(scenes, shown, strict=True), 1):
            caption = thought(family.name, scene, _NOTHING).removesuffix(": ")
            content += [{"type": "text", "text": f"{number}. "}, part, {"type": "text", "text": f"{caption}\n"}]
        return key, {**about, "messages": [{"role": "document", "content": content}]}, media
    first: list[Json] = []
    for number, part in enumerate(shown, 1):
        first += [{"type": "text", "text": f"{number}. "}, part]
    messages: list[Json] = []
    for place, page in enumerate(_asked_pages(rng, count)):
        asked = turn(family.asked[int(rng.integers(len(family.asked)))], scenes[page], rng)
        text = {"type": "text", "text": f"\n{page + 1}. {asked.text}"}
        messages.append({"role": "user", "content": [*(first if place == 0 else []), text]})
        messages.append({"role": "assistant", "content": asked.answer})
    return key, {**about, "messages": messages}, media


_NOTHING = Turn("", "", "", "", ("",))
"""A caption answers no question."""


def _asked_pages(rng: np.random.Generator, count: int) -> list[int]:
    return [int(page) for page in rng.integers(count, size=QUESTIONS)]
