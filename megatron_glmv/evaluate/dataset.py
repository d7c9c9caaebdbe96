"""Questions from a JSON Lines file: conversations with media, the right answer, and the answers to choose from."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_glmv.data.conversation import media_of, media_parts
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.types import Json

UNSORTED = "all"
"""Task of a question that names neither task nor domain."""


@dataclass(frozen=True)
class Question:
    """One line of the file. `messages` ends with the user's turn; media paths in it are absolute."""

    id: str
    task: str
    tier: str
    domain: str
    answer: str
    choices: tuple[str, ...]
    messages: list[Json]
    stated_chance: float = 0.0
    """Share right by chance of a question without choices, where the file states it."""

    @property
    def chance(self) -> float:
        return 1 / len(self.choices) if self.choices else self.stated_chance

    @property
    def media(self) -> tuple[tuple[str, str], ...]:
        """(kind, path) of images and videos in the order in which they are shown."""
        return tuple(media_of({"messages": self.messages}))

    @property
    def prompt(self) -> str:
        """The text of the last turn."""
        return text_of(self.messages[-1])


def text_of(message: Json) -> str:
    """All text of a turn, without its media."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def load_questions(path: Path, limit: int | None = None) -> list[Question]:
    """Reads at most `limit` questions of each task (all where None), in the order of the file.

    A line is {"id", "messages"} in transformers' chat shape with media paths relative to the file, and may have "task",
    "tier", "domain", "answer", "choices" and "chance". Without "answer" the last turn must be the assistant's and is
    the answer. Raises DataError, naming the line.
    """
    if not path.is_file():
        raise DataError(path, "is not a file of questions (JSON Lines)")
    questions: list[Question] = []
    taken: dict[str, int] = {}
    seen: set[str] = set()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                question = parse_question(json.loads(line), path.parent.resolve(), default_id=str(number))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}, line {number}", f"{type(error).__name__}: {error}") from error
            if question.id in seen:
                raise DataError(f"{path}, line {number}", f"the id {question.id!r} was used before")
            seen.add(question.id)
            if limit is None or taken.get(question.task, 0) < limit:
                taken[question.task] = taken.get(question.task, 0) + 1
                questions.append(question)
    if not questions:
        raise DataError(path, "holds no question")
    return questions


def parse_question(line: Any, folder: Path, default_id: str) -> Question:
    """Raises ValueError, KeyError or TypeError when the line is not a question."""
    messages = with_absolute_media(line["messages"], folder)
    answer = line.get("answer")
    if messages and messages[-1]["role"] == "assistant":
        said = text_of(messages.pop())
        answer = said if answer is None else answer
    if answer is None:
        raise ValueError('neither "answer" nor an assistant turn at the end: nothing to compare with')
    if not messages:
        raise ValueError("no user turn")
    domain = str(line.get("domain", ""))
    return Question(
        id=str(line.get("id", default_id)),
        task=str(line.get("task", "")) or domain or UNSORTED,
        tier=str(line.get("tier", "")),
        domain=domain,
        answer=str(answer),
        choices=tuple(str(choice) for choice in line.get("choices") or ()),
        messages=messages,
        stated_chance=float(line.get("chance", 0.0)),
    )


def with_absolute_media(messages: list[Json], folder: Path) -> list[Json]:
    """A copy of a conversation whose media paths do not depend on where it stood. Raises ValueError where it is not in
    chat shape."""
    made = copy.deepcopy(messages)
    for part in media_parts({"messages": made}):
        part[part["type"]] = str(folder / part[part["type"]])
    return made
