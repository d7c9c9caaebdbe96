"""The pool of prompts: conversations with answers, as `glmv eval` reads them, and who judges each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.types import Json
from megatron_glmv.evaluate.dataset import Question, parse_question
from megatron_glmv.rl.curriculum import Place, tier_centre
from megatron_glmv.rl.environments.registry import episode_of
from megatron_glmv.rl.environments.types import Episode
from megatron_glmv.rl.rewards.domains import find

DIFFICULTIES = ("very hard", "hard", "middle", "easy", "very easy")
"""What a person may call a prompt, with the default five tiers."""


@dataclass(frozen=True)
class RLPrompt:
    """One prompt with its reference."""

    question: Question
    verifier: str
    """Domain under which the judge finds its verifier; empty for an episode."""
    answer: Any
    extra: Mapping[str, Any] = field(default_factory=dict)
    label: float | None = None
    """Pass rate given with it."""
    episode: Episode | None = None
    """The world that it opens, where it is more than a question; it is its own judge then."""

    @property
    def id(self) -> str:
        return self.question.id

    @property
    def conversation(self) -> Json:
        return {"id": self.question.id, "messages": self.question.messages}

    @property
    def place(self) -> Place:
        return Place(self.id, self.question.domain or self.question.task, self.question.task, self.label)


def load_prompts(path: Path, edges: Sequence[float]) -> list[RLPrompt]:
    """A line is a question of `glmv eval`, and may have "verifier" (else the task names it, else the domain), "extra"
    for it, and "difficulty": a pass rate from 0 to 1, or one of DIFFICULTIES. Instead of messages and an answer it may
    name an episode: "environment" (environments/registry.py). Raises DataError, naming the line."""
    if not path.is_file():
        raise DataError(path, "is not a file of prompts (JSON Lines)")
    prompts: dict[str, RLPrompt] = {}
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                line = json.loads(text)
                if "environment" in line:
                    prompt = _episode(line, str(number), edges)
                else:
                    prompt = _prompt(line, parse_question(line, path.parent.resolve(), str(number)), edges)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}", f"{type(error).__name__}: {error}") from error
            if prompt.id in prompts:
                raise DataError(f"{path}, line {number}", f"the id {prompt.id!r} was used before")
            prompts[prompt.id] = prompt
    if not prompts:
        raise DataError(path, "holds no prompt")
    return list(prompts.values())


def _prompt(line: Json, question: Question, edges: Sequence[float]) -> RLPrompt:
    names = [line["verifier"]] if "verifier" in line else [question.task, question.domain]
    verifier = next((name for name in names if find(str(name))), None)
    if verifier is None:
        raise ValueError(f"no verifier is known by {' or '.join(map(repr, names))}")
    extra = {"question": question.prompt, "choices": list(question.choices), **line.get("extra", {})}
    if (known := find(str(verifier))) and known.model_only:
        extra.setdefault("messages", question.messages)  # a reward model reads the whole conversation
    return RLPrompt(question, verifier, line.get("answer", question.answer), extra, _label(line, edges))


def _episode(line: Json, default_id: str, edges: Sequence[float]) -> RLPrompt:
    episode = episode_of(line["environment"])
    task, tier = str(line.get("task", episode.environment)), str(line.get("tier", ""))
    domain = str(line.get("domain", episode.environment))
    question = Question(str(line.get("id", default_id)), task, tier, domain, "", (), [])
    return RLPrompt(question, "", None, label=_label(line, edges), episode=episode)


def _label(line: Json, edges: Sequence[float]) -> float | None:
    given = line.get("difficulty")
    if given is None:
        return None
    if isinstance(given, str):
        if len(edges) + 1 != len(DIFFICULTIES):
            raise ValueError(
                f"difficulty {given!r} in words needs {len(DIFFICULTIES)} tiers, there are {len(edges) + 1}"
            )
        return tier_centre(DIFFICULTIES.index(given), edges)
    if not 0 <= float(given) <= 1:
        raise ValueError(f"difficulty {given} is not a pass rate from 0 to 1")
    return float(given)


def first_of_each(prompts: Sequence[RLPrompt], count: int) -> list[RLPrompt]:
    """The first `count` of each task, in the order of the file."""
    taken: dict[str, int] = {}
    chosen = []
    for prompt in prompts:
        task = prompt.question.task
        taken[task] = taken.get(task, 0) + 1
        if taken[task] <= count:
            chosen.append(prompt)
    return chosen


def probes(prompts: Sequence[RLPrompt], count: int) -> list[RLPrompt]:
    """Prompts that compare an engine with the trained model: as many with media as without, the first of the file."""
    seen: dict[bool, list[RLPrompt]] = {True: [], False: []}
    for prompt in prompts:
        seen[
            prompt.episode is not None
            or any(
                not isinstance(message["content"], str) and len(message["content"]) > 1
                for message in prompt.question.messages
            )
        ].append(prompt)
    half = max(count - len(seen[False]), -(-count // 2))
    chosen = seen[True][:half]
    return chosen + seen[False][: count - len(chosen)]
