"""A scalar reward model for prompts without a reference (the RLHF branch: arXiv 2507.01006, 5.2, "a reward model scores
the answer segment"), behind a vLLM or SGLang server that somebody has started.

Requests and answers, as the sources of vLLM 0.32.0 and SGLang 0.5.23 have them:

    classify  vLLM    POST /classify {model, messages, use_activation: false} -> {data: [{probs: [x]}]}
    pooling   vLLM    POST /pooling  {model, messages, use_activation: false} -> {data: [{data: [x] or [[x], ..]}]}
    score     vLLM    POST /score    {model, queries, documents, use_activation: false} -> {data: [{index, score}]}
    sglang    SGLang  POST /classify {model, text: [..]} -> [{embedding: [x]}]

Without `use_activation: false` vLLM answers with the sigmoid of a single label. A model with scores of all tokens
(`pooling` of a token-wise one) is read at the last. SGLang's other path, /v1/classify, answers with a softmax over the
labels: 1 for any answer where there is one label; and its /classify takes text alone, so the chat template of the
reward model is rendered here.

The scalar x of an answer becomes a reward by

    z = clip((x - mean) / std, -clip, clip),    reward = 1 / (1 + exp(-z))

which keeps the model's order and lies in [0, 1] as every reward does. With mean 0 and std 1 it is what the model says
itself: Bradley-Terry's chance that this answer is preferred to one of score `mean` (the loss it was trained by, arXiv
2203.02155, equation 1). The clip is that of PPO-max (arXiv 2307.04964, 5.3.1), whose running mean and deviation do
nothing here: advantages are normalised within their group anyway, and a scale that moves would move the tiers.
"""

from __future__ import annotations

import base64
import math
import mimetypes
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.rl import RewardModelConfig
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.template_check import own_template
from megatron_glmv.rl.rewards.endpoint import Endpoint, Unavailable
from megatron_glmv.rl.rewards.judge_model import Opinion
from megatron_glmv.rl.rewards.memory import REST_AFTER, Memory, Rest, key_of

CLASSIFY, POOLING, SCORE, SGLANG = "classify", "pooling", "score", "sglang"
APIS = (CLASSIFY, POOLING, SCORE, SGLANG)
MAX_IMAGE_BYTES = 20 << 20
_SPECIAL = re.compile(r"<\|([^<>|\s]{1,64})\|>")

Json = dict[str, Any]


@dataclass(frozen=True)
class RewardModel:
    """Who is asked, how, and what a scalar is worth."""

    endpoint: Endpoint
    options: RewardModelConfig = field(default_factory=RewardModelConfig)
    """Its url, model and key_env are what the endpoint was made of."""
    cache: str = ""
    """A file of scalars by question, appended to; empty: they are kept in memory only."""

    def __post_init__(self) -> None:
        name, given = self.endpoint.option, self.options
        if given.api not in APIS:
            raise ConfigError(f"{name}.api", given.api, f"is none of {', '.join(APIS)}", f"give {CLASSIFY}")
        if given.std <= 0 or given.clip <= 0 or not all(map(math.isfinite, (given.mean, given.std, given.clip))):
            raise ConfigError(f"{name}.std, {name}.clip", (given.std, given.clip), "must be above 0, and all finite")
        if min(given.parallel, given.batch) < 1 or given.seconds <= 0:
            numbers = given.parallel, given.batch, given.seconds
            raise ConfigError(f"{name}.parallel, batch, seconds", numbers, "above 0")
        if (given.api == SGLANG) != bool(given.template):
            message = "is needed by sglang, which takes text" if given.api == SGLANG else f"is of no use to {given.api}"
            raise ConfigError(f"{name}.template", given.template, message, "give the directory of its tokenizer")
        if given.images and given.api not in (CLASSIFY, POOLING):
            raise ConfigError(f"{name}.images", True, f"cannot be sent by {given.api}", f"give {name}.api={CLASSIFY}")

    def reward(self, scalar: float) -> float:
        """In [0, 1]; see above."""
        z, bound = (scalar - self.options.mean) / self.options.std, self.options.clip
        return 1 / (1 + math.exp(-min(bound, max(-bound, z))))


@dataclass(frozen=True)
class Answered:
    """A conversation up to the user's last turn, and the answer to it."""

    turns: Sequence[Json]
    answer: str

    def messages(self, images: bool) -> list[Json]:
        """As a chat API takes them. Markers of the form <|name|> in the answer are broken: it could close its turn
        with them and praise itself in the next."""
        spoken = _SPECIAL.sub(r"<\1>", self.answer)
        return [_turn(turn, images) for turn in self.turns] + [{"role": "assistant", "content": spoken}]


class Scoring:
    """Asks and remembers. Threads live as long as one call of `ask`."""

    def __init__(self, model: RewardModel) -> None:
        self.model = model
        self._memory, self._rest = Memory(model.cache), Rest()
        self._template = own_template(Path(model.options.template)) if model.options.template else None

    def ask(self, answered: Sequence[Answered]) -> list[Opinion]:
        """One opinion an answer, in order; equal answers to equal prompts are asked about once."""
        model, found = self.model, dict[str, Opinion]()
        asked: dict[str, list[Json]] = {}
        keys = []
        for one in answered:
            try:
                messages = one.messages(model.options.images)
            except OSError as error:
                keys.append("")
                found[""] = Opinion(None, f"an image cannot be read: {error.strerror}", False, 0.0)
                continue
            keys.append(key_of(model.endpoint.model, model.options.api, model.options.template, messages))
            if (scalar := self._memory.get(keys[-1])) is not None:
                found[keys[-1]] = self._opinion(scalar, 0.0)
            else:
                asked[keys[-1]] = messages
        if asked:
            requests = list(_requests(asked, model))
            with ThreadPoolExecutor(min(model.options.parallel, len(requests))) as threads:
                for part in threads.map(lambda some: self._ask({key: asked[key] for key in some}), requests):
                    found |= part
        return [found[key] for key in keys]

    def _ask(self, asked: dict[str, list[Json]]) -> dict[str, Opinion]:
        begun = time.monotonic()
        try:
            if self._rest.on:
                raise Unavailable(f"the endpoint failed {REST_AFTER} times in a row and is left alone for a while")
            try:
                scalars = self._scalars(list(asked.values()))
            except Unavailable:
                self._rest.failed()
                raise
        except Unavailable as error:
            none = Opinion(None, str(error), False, time.monotonic() - begun)
            return dict.fromkeys(asked, none)
        self._rest.answered()
        for key, scalar in zip(asked, scalars, strict=True):
            self._memory.put(key, scalar)
        seconds = (time.monotonic() - begun) / len(asked)
        return {key: self._opinion(scalar, seconds) for key, scalar in zip(asked, scalars, strict=True)}

    def _opinion(self, scalar: float, seconds: float) -> Opinion:
        reward = self.model.reward(scalar)
        return Opinion(reward, f"the reward model gives {scalar:.4g}", False, seconds, scalar)

    def _scalars(self, conversations: list[list[Json]]) -> list[float]:
        """One number a conversation. Raises Unavailable where the server has none."""
        model = self.model
        if model.options.api == SGLANG:
            texts = [self._render(messages) for messages in conversations]
            reply = model.endpoint.call("/classify", {"text": texts}, model.options.seconds)
            return _read(lambda: [one["embedding"] for one in reply], len(texts))
        if model.options.api == SCORE:
            query = "\n\n".join(turn["content"] for turn in conversations[0][:-1])
            body = {"queries": query, "documents": [messages[-1]["content"] for messages in conversations]}
            reply = model.endpoint.call("/score", {**body, "use_activation": False}, model.options.seconds)
            ordered = _read(lambda: sorted(one["index"] for one in reply["data"]), len(conversations))
            if ordered != list(range(len(conversations))):
                raise Unavailable("not the answer of /score: indices that were not asked for")
            by_place = {one["index"]: one["score"] for one in reply["data"]}
            return _read(lambda: [by_place[i] for i in range(len(by_place))], len(conversations))
        (messages,) = conversations
        asked = {"messages": messages, "use_activation": False}
        reply = model.endpoint.call(f"/{model.options.api}", asked, model.options.seconds)
        return _read(lambda: [one["probs" if model.options.api == CLASSIFY else "data"] for one in reply["data"]], 1)

    def _render(self, messages: list[Json]) -> str:
        assert self._template is not None
        try:  # no bos_token: the server's tokenizer puts it in front of a text
            return self._template.render(messages=messages, add_generation_prompt=False, bos_token="")
        except Exception as error:  # whatever the template's own expressions raise
            raise DataError(self.model.options.template, f"its chat template fails: {error}") from None


def _requests(asked: dict[str, list[Json]], model: RewardModel) -> Iterator[list[str]]:
    """Keys of the answers that go into one request each."""
    if model.options.api in (CLASSIFY, POOLING):
        yield from ([key] for key in asked)
        return
    alike: dict[str, list[str]] = {}
    for key, messages in asked.items():
        alike.setdefault(key_of(messages[:-1]) if model.options.api == SCORE else "", []).append(key)
    for keys in alike.values():
        yield from (keys[i : i + model.options.batch] for i in range(0, len(keys), model.options.batch))


def _read(values: Any, count: int) -> list[float]:
    """The numbers of a reply that `values` takes out of it: of a vector of one the number, of a list of vectors that
    of the last. Raises Unavailable for what is none."""
    try:
        found = [_number(value) for value in values()]
    except (LookupError, TypeError, ValueError) as error:
        raise Unavailable(f"not the answer of a reward model: {type(error).__name__}: {error}"[:200]) from None
    if len(found) != count:
        raise Unavailable(f"not the answer of a reward model: {len(found)} numbers for {count} answers")
    return found


def _number(value: Any) -> float:
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[-1]
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"{len(value)} numbers for one answer: a classifier or an embedding")
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("no finite number")
    return float(value)


def _turn(turn: Json, images: bool) -> Json:
    """A turn of the prompt file as a chat API takes it. Media that are not sent are left out."""
    content = turn["content"]
    if isinstance(content, str):
        return {"role": turn["role"], "content": content}
    text = "".join(part["text"] for part in content if part["type"] == "text")
    if not images:
        return {"role": turn["role"], "content": text}
    parts = [_image(part["image"]) for part in content if part["type"] == "image"]
    return {"role": turn["role"], "content": [*parts, {"type": "text", "text": text}]}


def _image(path: str) -> Json:
    """Raises OSError."""
    if (size := Path(path).stat().st_size) > MAX_IMAGE_BYTES:
        raise OSError(0, f"{size} bytes are more than {MAX_IMAGE_BYTES}")
    kind = mimetypes.guess_type(path)[0] or "image/png"
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
