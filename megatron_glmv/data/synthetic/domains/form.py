"""Problems as conversations: for pre-training, for SFT with and without thinking, and as questions without an answer's
turn (pools of reinforcement learning, and evaluation).

Every form has `answer`, `choices`, `chance`, `task`, `tier`, `domain` and `template` beside the messages; `domain` is
what the verifier goes by.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_glmv.data.synthetic.conversation import SUFFIXES
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Problem, problem
from megatron_glmv.data.synthetic.encode import encode_image, encode_video
from megatron_glmv.data.synthetic.seeds import stream
from megatron_glmv.data.types import IMAGE, Json

PRETRAIN, SFT, QUESTIONS = "pretrain", "sft", "questions"
FORMS = (PRETRAIN, SFT, QUESTIONS)
ON, OFF, MIXED = "on", "off", "mixed"
THINKING = (MIXED, ON, OFF)
BOX, END_BOX = "<|begin_of_box|>", "<|end_of_box|>"


@dataclass(frozen=True)
class Recipe:
    """What a corpus is made of; with (domain, tier, index) it says everything about a sample."""

    split: str
    """One of seeds.SPLITS."""
    form: str = PRETRAIN
    thinking: str = MIXED
    """Of SFT: every sample with its chain of thought, none, or each half the time."""
    seed: int = 0
    scale: int = 1
    """Pictures are this many times as large; everything in them grows alike."""
    every: bool = False
    """Of SFT without thinking: every question about the scene, a turn each, instead of one. Five answers to one look
    teach a small model what five looks would."""

    def __post_init__(self) -> None:
        for name, allowed in (("form", FORMS), ("thinking", THINKING)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")


@dataclass(frozen=True)
class Made:
    """One sample, encoded. `media`: member name -> bytes."""

    key: str
    conversation: Json
    media: dict[str, bytes]

    def texts(self) -> list[str]:
        """All its text, for a tokenizer to learn from."""
        found: list[str] = []
        for message in self.conversation["messages"]:
            found += [message["content"]] if isinstance(message["content"], str) else []
            found += [part["text"] for part in message["content"] if isinstance(part, dict) and part["type"] == "text"]
            found += [message["reasoning_content"]] if message.get("reasoning_content") else []
        return [text.replace(BOX, "").replace(END_BOX, "") for text in found]


def make(recipe: Recipe, domain: Domain, tier: int, index: int) -> Made:
    """Sample `index` of a domain at a tier: the same bytes in any process."""
    item = problem(domain, tier, recipe.split, recipe.seed, index, recipe.scale)
    own = stream(recipe.seed, recipe.split, f"{domain.name}-{tier}-form", index)
    key = f"{domain.name}-{tier}-{recipe.split}-{index:07d}"
    media: dict[str, bytes] = {}
    shown: list[Json] = []
    for number, medium in enumerate(item.media):
        suffixes = SUFFIXES[medium.kind]
        suffix = suffixes[int(own.integers(len(suffixes)))]
        encode = encode_image if medium.kind == IMAGE else encode_video
        media[f"{number}.{suffix}"] = encode(medium.pixels, suffix)
        shown.append({"type": medium.kind, medium.kind: f"{number}.{suffix}"})
    thinks = recipe.form == SFT and (recipe.thinking == ON or (recipe.thinking == MIXED and bool(own.integers(2))))
    return Made(key, _conversation(recipe, item, key, shown, thinks), media)


def _conversation(recipe: Recipe, item: Problem, key: str, shown: list[Json], thinks: bool) -> Json:
    first = item.asks[0]
    about: Json = {
        "id": key,
        "domain": item.domain,
        "task": first.task,
        "tier": item.tier,
        "answer": first.answer,
        "choices": list(first.choices),
        "chance": first.chance,
        "template": {"wording": list(first.wording), "style": list(item.style)},
    }
    if recipe.form == QUESTIONS:
        return about | {"messages": [_user(first, shown)]}
    pretrain = recipe.form == PRETRAIN
    messages: list[Json] = []
    for number, ask in enumerate(_distinct(item) if pretrain or (recipe.every and not thinks) else [first]):
        answer: Json = {"role": "assistant", "content": ask.answer if pretrain else f"{BOX}{ask.answer}{END_BOX}"}
        if not pretrain:
            # An empty thought that is given is trained: the answer to /nothink (data/template.py).
            answer["reasoning_content"] = ". ".join(ask.steps) + "." if thinks else ""
        messages += [_user(ask, [] if number else shown), answer]
    return about | ({} if pretrain else {"thinking": thinks}) | {"messages": messages}


def _distinct(item: Problem) -> list[Ask]:
    """No question twice."""
    return list({ask.question: ask for ask in item.asks}.values())


def _user(ask: Ask, shown: list[Json]) -> Json:
    return {"role": "user", "content": [*shown, {"type": "text", "text": ask.question}]}
