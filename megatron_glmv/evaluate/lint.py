"""`glmv data lint`: SFT conversations whose form is not what the model shall learn are reported and left out.

Every assistant turn that carries loss is read as the reward system reads a response (rl/rewards/extraction.py), because
what SFT teaches is what RL will be graded by (arXiv 2507.01006, section 4: strict format, no mixed language, no
redundant thought):

    shape       a conversation in chat shape that ends with the assistant; no document, which would be trained whole
    form        one think block at most, in front; one <answer> at most; no <answer> under GLM-4.5V's template
    box         exactly one where the line says "verifiable": true, none where false, one at most where it says nothing
    thinking    "thinking": true needs a thought behind the last user turn, false an empty one
    language    a Chinese and an English paragraph in one thought or answer
    redundancy  50 characters that come ten times, or one sentence REPEATS times
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_glmv.data.conversation import media_of
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.template import GLM45V
from megatron_glmv.data.types import Json
from megatron_glmv.rl.rewards import style
from megatron_glmv.rl.rewards.extraction import ANSWER, END_THINK, THINK, take_apart
from megatron_glmv.rl.rewards.types import FORBIDDEN, OPTIONAL, REQUIRED

SHAPE, FORM, BOX, THINKING, LANGUAGE, REDUNDANCY = "shape", "form", "box", "thinking", "language", "redundancy"
CHECKS = (SHAPE, FORM, BOX, THINKING, LANGUAGE, REDUNDANCY)
REPEATS = 3
"""Times that a sentence may not come in one thought."""
SENTENCE = 12
"""Characters from which a sentence counts: "wait" and "so x = 2" may come back."""
_ENDS = re.compile(r"[.!?;。！？；\n]+")


@dataclass(frozen=True)
class Fault:
    check: str
    """One of CHECKS."""
    reason: str


@dataclass(frozen=True)
class Report:
    """What was found in a file."""

    lines: int
    kept: int
    dropped: dict[str, int]
    """Lines by the check that they failed first."""


def faults(conversation: Json, template: str = GLM45V) -> Iterator[Fault]:
    """Everything wrong with a conversation, in the order of CHECKS."""
    try:
        media_of(conversation)
    except ValueError as error:
        yield Fault(SHAPE, str(error))
        return
    messages: list[Json] = conversation["messages"]
    if any(message["role"] == "document" for message in messages):
        yield Fault(SHAPE, "a document has no assistant's turn")
        return
    if messages[-1]["role"] != "assistant":
        yield Fault(SHAPE, f"ends with a turn of the {messages[-1]['role']}")
        return
    users = [n for n, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        yield Fault(SHAPE, "nobody asks")
        return
    found = [
        fault
        for n, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("weight") != 0
        for fault in _of_turn(message, conversation, template, last=n == len(messages) - 1, live=n > users[-1])
    ]
    yield from sorted(found, key=lambda fault: CHECKS.index(fault.check))


def _of_turn(message: Json, conversation: Json, template: str, *, last: bool, live: bool) -> Iterator[Fault]:
    """`live`: behind the last user turn, where the template keeps the thought."""
    text = _text(message)
    if (reasoning := message.get("reasoning_content")) is not None:
        text = f"{THINK}{reasoning}{END_THINK}{text}"
    calls = bool(message.get("tool_calls"))
    parts = take_apart(text, OPTIONAL)
    if parts.fault:
        yield Fault(BOX if "box" in parts.fault else FORM, parts.fault)
        return
    if template == GLM45V and ANSWER in text:
        yield Fault(FORM, f"{ANSWER}, which GLM-4.5V's form has not")
    if not parts.answer and not calls:
        yield Fault(FORM, "no answer")
    verifiable = conversation.get("verifiable")
    if last and not calls and verifiable is not None:
        strict = take_apart(text, REQUIRED if verifiable else FORBIDDEN)
        if strict.fault:
            yield Fault(BOX, strict.fault)
    if live and (wanted := conversation.get("thinking")) is not None and wanted != bool(parts.thinking.strip()):
        yield Fault(
            THINKING, "no thought, and the line says thinking" if wanted else "a thought, and the line says none"
        )
    for prose in (parts.thinking, parts.prose):
        if style.mixes_languages(prose):
            yield Fault(LANGUAGE, "a Chinese and an English paragraph in one text")
        if (times := style.repetition(prose)) >= style.REPEATS:
            yield Fault(REDUNDANCY, f"{style.WINDOW} characters that come {times} times")
        elif repeated := _repeated_sentence(prose):
            yield Fault(REDUNDANCY, repeated)


def _text(message: Json) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _repeated_sentence(text: str) -> str:
    sentences = Counter(" ".join(sentence.split()) for sentence in _ENDS.split(text))
    often = [(n, s) for s, n in sentences.items() if len(s) >= SENTENCE and n >= REPEATS]
    return f"{max(often)[1][:40]!r} comes {max(often)[0]} times" if often else ""


def lint(data: Path, out: Path | None = None, template: str = GLM45V) -> Report:
    """Checks each line of `data`; with `out` the sound ones are written there as they stand, and the others to
    OUT.dropped.jsonl as {"line", "id", "check", "reasons"}. Raises DataError where `data` is no file."""
    if not data.is_file():
        raise DataError(data, "is not a file of conversations (JSON Lines)")
    count, kept, rejected = 0, [], []
    for number, raw in enumerate(data.read_text(encoding="utf-8").split("\n"), start=1):
        if not raw.strip():
            continue
        count += 1
        conversation, found = None, []
        try:
            conversation = json.loads(raw)
            found = list(faults(conversation, template)) if isinstance(conversation, dict) else []
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            found = [Fault(SHAPE, f"{type(error).__name__}: {error}")]
        if not isinstance(conversation, dict):
            found = found or [Fault(SHAPE, "not an object")]
        if not found:
            kept.append(raw)
            continue
        name = conversation.get("id") if isinstance(conversation, dict) else None
        reasons = [f"{fault.check}: {fault.reason}" for fault in found]
        rejected.append({"line": number, "id": name, "check": found[0].check, "reasons": reasons})
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(f"{raw}\n" for raw in kept), encoding="utf-8")
        listed = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejected)
        out.with_name(out.name.removesuffix(".jsonl") + ".dropped.jsonl").write_text(listed, encoding="utf-8")
    by_check = Counter(str(entry["check"]) for entry in rejected)
    return Report(count, len(kept), {check: by_check[check] for check in CHECKS if by_check[check]})
