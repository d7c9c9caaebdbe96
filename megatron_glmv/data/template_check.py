"""A tokenizer directory's own chat template (Jinja) against ours, token by token, on conversations of every kind.

The directory's template is what transformers, vLLM and SGLang render prompts with; a model that was trained under
another form than it is asked in answers worse, and nobody is told. It runs in Jinja's sandbox, with transformers'
settings (trim_blocks, lstrip_blocks, its own `tojson`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.template import GLM45V, Piece, Special, Text, as_text, generation_prompt, render
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.data.types import Json

FILE, CONFIG, OLDER = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"
_IMAGE, _VIDEO = {"type": "image", "image": "a.png"}, {"type": "video", "video": "b.mp4"}
_TOOL: Json = {
    "type": "function",
    "function": {"name": "zoom", "description": "Enlarge é", "parameters": {"type": "object", "properties": {}}},
}
_ASKED: list[Json] = [{"role": "user", "content": [_IMAGE, {"type": "text", "text": "Which city is this?"}]}]
_PLAIN: list[Json] = [*_ASKED, {"role": "assistant", "content": "Ulm."}]
_REASONED: list[Json] = [*_ASKED, {"role": "assistant", "reasoning_content": "A tall spire.", "content": "Ulm."}]
_TURNS: list[Json] = [
    {"role": "system", "content": "Be brief."},
    *_REASONED,
    {"role": "user", "content": [_VIDEO, _IMAGE, {"type": "text", "text": "And here?"}]},
    {"role": "assistant", "reasoning_content": "A wide river.", "content": "Köln,\n at night."},
]
_SHORT: list[Json] = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in _TURNS]
_CALLED: list[Json] = [
    *_ASKED,
    {
        "role": "assistant",
        "reasoning_content": "Too small.",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "zoom", "arguments": {"factor": 2, "part": "top"}}}],
    },
    {"role": "tool", "content": "done"},
    {"role": "tool", "content": "saved"},
    {"role": "assistant", "reasoning_content": "A spire.", "content": "Ulm."},
]


@dataclass(frozen=True)
class Probe:
    """A conversation and how it is rendered; `prompt`: up to the opened answer."""

    name: str
    messages: Sequence[Json]
    thinking: bool = True
    prompt: bool = False
    tools: Sequence[Json] = ()


PROBES = (
    Probe("one answer with thinking", _REASONED),
    Probe("one answer without", _PLAIN, thinking=False),
    Probe("two turns, system, image and video", _TURNS),
    Probe("the same without thinking", _SHORT, thinking=False),
    Probe("tool calls and responses", _CALLED),
    Probe("tools told", _CALLED, tools=(_TOOL,)),
    Probe("prompt", _TURNS[:-1], prompt=True),
    Probe("prompt without thinking", _SHORT[:-1], thinking=False, prompt=True),
)


@dataclass(frozen=True)
class Difference:
    """Texts from the first token on that differs; both empty where the two are equal."""

    probe: Probe
    ours: str = ""
    theirs: str = ""

    def __bool__(self) -> bool:
        return bool(self.ours or self.theirs)


def check_template(directory: Path, template: str) -> list[Difference]:
    """One entry a probe that has a meaning in `template`. Raises DataError where the directory has no template of its
    own, or one that cannot be rendered."""
    tokenizer, own = Tokenizer.load(directory), own_template(directory)
    return [
        _compare(probe, own, tokenizer, template) for probe in PROBES if template == GLM45V or _known_to_glm41v(probe)
    ]


def own_template(directory: Path) -> jinja2.Template:
    """The template that transformers would take from the directory. Raises DataError."""
    if (directory / FILE).is_file():
        path = directory / FILE
        text: Any = path.read_text("utf-8")
    else:
        path = next((directory / n for n in (OLDER, CONFIG) if "chat_template" in _json(directory / n)), directory)
        text = _json(path).get("chat_template")
    if not isinstance(text, str):
        raise DataError(path, f"has no chat template ({FILE}, or a text `chat_template` in {OLDER} or {CONFIG})")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise DataError(path, f"is no Jinja template: {error}") from None


def _compare(probe: Probe, own: jinja2.Template, tokenizer: Tokenizer, template: str) -> Difference:
    options: dict[str, Any] = {"thinking": probe.thinking, "tools": probe.tools}
    if probe.prompt:
        pieces = generation_prompt(probe.messages, template, **options)
    else:
        pieces = render(probe.messages, template, **options)[:-1]  # the last one is only ever a label
    given: dict[str, Any] = {"tools": list(probe.tools)} if probe.tools else {}
    messages = probe.messages if template == GLM45V else _spelled(probe.messages)
    try:
        text = own.render(
            messages=messages, add_generation_prompt=probe.prompt, enable_thinking=probe.thinking, **given
        )
    except Exception as error:  # whatever the template's own expressions raise
        raise DataError(tokenizer.directory, f"its chat template fails on {probe.name!r}: {error}") from None
    ours, theirs = _ids(pieces, tokenizer), tokenizer.parse(text)
    same = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if same is None:
        same = min(len(ours), len(theirs))
    return Difference(probe, tokenizer.decode(ours[same:]), tokenizer.decode(theirs[same:]))


def _ids(pieces: Sequence[Piece], tokenizer: Tokenizer) -> list[int]:
    """Media as their unexpanded placeholders."""
    out: list[int] = []
    for piece in pieces:
        if isinstance(piece, Text):
            out += tokenizer.encode(piece.text)
        elif isinstance(piece, Special):
            out.append(tokenizer.special(piece.name))
        else:
            out += tokenizer.parse(as_text([piece]))
    return out


def _known_to_glm41v(probe: Probe) -> bool:
    """Its published form has no tools and no switch for thinking; thoughts and answers are tags inside the content."""
    return not (probe.tools or any("tool_calls" in message for message in probe.messages)) and (
        probe.thinking or not probe.prompt
    )


def _spelled(messages: Sequence[Json]) -> list[Json]:
    """For GLM-4.1V: what others give its template. Thoughts of earlier turns are not given again (its model card)."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    out = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            thought = message.get("reasoning_content", "") if i > last else ""
            text = f"<think>{thought}</think><answer>{message['content']}</answer>"
            message = {"role": "assistant", "content": text}
        out.append(message)
    return out


def _json(path: Path) -> Json:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
