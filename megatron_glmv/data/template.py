"""Chat templates of GLM-4.5V and GLM-4.1V: a conversation as pieces of text, special tokens and media, trained or not.

    [gMASK]<sop><|system|>\\nS<|user|>\\n{image}Q<|assistant|>\\n<think>R</think>\\nA             GLM-4.5V
    [gMASK]<sop><|user|>\\n{image}Q<|assistant|>\\n<think>R</think><answer>A</answer>             GLM-4.1V

What carries loss: in an assistant turn everything behind `<|assistant|>\\n` up to the end of the answer, and the token
that ends the turn. GLM writes no end token: a turn ends where the next role token stands, and generation stops at
`<|user|>` or `<|observation|>` as well as at `<|endoftext|>`. So the model has to learn to say that role token; behind
the last answer of a conversation it is `<|user|>`. Never trained: media placeholders, and what a generation prompt
already holds (the empty thinking of an answer without reasoning, or of an earlier turn whose reasoning was dropped).

A message of the role `document` stands alone: all its text is trained (pre-training on plain or interleaved pages).

Thinking: reasoning (`reasoning_content`, or `<think>..</think>` inside the content) is kept behind the last user turn
and dropped from earlier ones. Without thinking, GLM-4.5V marks each user turn with `/nothink` and fills in
`<think></think>`; GLM-4.1V fills in `<think></think>` alone. Reasoning that is given and empty (`"reasoning_content":
""`, or `<think></think>` in front of the content) behind a `/nothink` is trained: that is how a model learns what the
mark asks for (arXiv 2507.01006, section 4).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.tool_prompt import tool_prompt
from megatron_glmv.data.types import IMAGE, VIDEO, Json

GLM45V, GLM41V = "glm45v", "glm41v"
TEMPLATES = (GLM45V, GLM41V)

STOP_TOKENS = {
    GLM45V: ("<|endoftext|>", "<|user|>", "<|observation|>"),
    GLM41V: ("<|endoftext|>", "<|user|>", "<|observation|>", "</answer>"),
}
"""Tokens at which generation ends, by template: GLM's eos lists."""

_ROLES = ("system", "user", "assistant", "tool", "observation", "document")
_ANSWER_MARKUP = re.compile(r"(<\|begin_of_box\|>|<\|end_of_box\|>)")
_TOOL_MARKUP = re.compile(r"(</?tool_call>|</?arg_key>|</?arg_value>)")


@dataclass(frozen=True)
class Text:
    """Plain text; it never becomes a special token."""

    text: str
    trained: bool = False


@dataclass(frozen=True)
class Special:
    name: str
    trained: bool = False


@dataclass(frozen=True)
class Media:
    """Place of an image or a video; markup and placeholders follow from its plan."""

    kind: str


Piece = Text | Special | Media


def render(
    messages: Sequence[Json],
    template: str = GLM45V,
    *,
    thinking: bool | None = None,
    tools: Sequence[Json] = (),
    key: str = "",
) -> list[Piece]:
    """A whole conversation, to train on.

    thinking: None takes it from the conversation: on where an answer behind the last user turn has reasoning.
    tools: definitions of the functions it may call, told in a system turn in front (tool_prompt.py).
    The last piece is the token that ends the last turn (`<|user|>`, or `<|endoftext|>` behind a document); it is only
    ever a label. Raises SampleError(key, reason) for a message that has no meaning in the template.
    """
    turns = _Turns(messages, template, thinking, tools, key)
    pieces, last = turns.pieces(), messages[-1]
    if last["role"] == "document":
        return _joined([*pieces, Special("<|endoftext|>", trained=True)])
    return _joined([*pieces, Special("<|user|>", trained=_carries_loss(last))])


def generation_prompt(
    messages: Sequence[Json],
    template: str = GLM45V,
    *,
    thinking: bool = False,
    closed: bool = True,
    tools: Sequence[Json] = (),
    key: str = "",
) -> list[Piece]:
    """What stands before the first generated token: the messages and an opened assistant turn.

    thinking=False closes the thinking at once, as training without reasoning has it; with closed=False as well the
    model reads `/nothink` and writes the empty thinking itself.
    """
    turns = _Turns(messages, template, thinking, tools, key)
    given = turns.no_thinking() if closed and not thinking else []
    return _joined([*turns.pieces(), Special("<|assistant|>"), Text("\n"), *given])


def next_turn(
    message: Json, template: str = GLM45V, *, thinking: bool = False, role_said: bool = False, key: str = ""
) -> list[Piece]:
    """What stands between an answer that was generated and the next one: another's turn (an environment's), and an
    opened assistant turn. role_said: the answer ended by saying the role token of this turn, as it should."""
    turns = _Turns([message], template, thinking, (), key)
    pieces = turns.behind_answer()
    given = [] if thinking else turns.no_thinking()
    return _joined([*pieces[role_said:], Special("<|assistant|>"), Text("\n"), *given])


class _Turns:
    """The turns of one conversation under one template."""

    def __init__(
        self, messages: Sequence[Json], template: str, thinking: bool | None, tools: Sequence[Json], key: str
    ) -> None:
        if template not in TEMPLATES:
            raise ValueError(f"no chat template {template!r}; there are {', '.join(TEMPLATES)}")
        if not messages:
            raise SampleError(key, "the conversation has no messages")
        if tools and template != GLM45V:
            raise SampleError(key, f"the template {template} has no place for tools; {GLM45V} has")
        self.messages, self.template, self.tools, self.key = messages, template, tools, key
        for message in messages:
            if message.get("role") not in _ROLES:
                raise SampleError(key, f"role {message.get('role')!r} is not one of {', '.join(_ROLES)}")
        if len(messages) > 1 and any(message["role"] == "document" for message in messages):
            raise SampleError(key, "a document stands alone, without other messages")
        users = [i for i, message in enumerate(messages) if message["role"] == "user"]
        self.last_user = users[-1] if users else -1
        if thinking is None:
            thinking = any(self._reasoning_and_answer(m)[0] for m in messages[self.last_user + 1 :] if _is_answer(m))
        self.thinking = thinking

    def pieces(self) -> list[Piece]:
        out: list[Piece] = [Special("[gMASK]"), Special("<sop>")]
        if self.tools:
            plain, marked = tool_prompt(self.tools, self.key)
            parts = [Special(p) if _TOOL_MARKUP.fullmatch(p) else Text(p) for p in _TOOL_MARKUP.split(marked) if p]
            out += [Special("<|system|>"), Text(plain), *parts]
        previous: Json = {"role": ""}
        for index, message in enumerate(self.messages):
            out += self._turn(index, message, previous)
            previous = message
        return out

    def behind_answer(self) -> list[Piece]:
        """The first turn as it follows an assistant's; its first piece is the role token."""
        return [*map(_untrained, self._turn(0, self.messages[0], {"role": "assistant"}))]

    def _turn(self, index: int, message: Json, before: Json) -> list[Piece]:
        role, previous = message["role"], before["role"]
        if role == "document":
            return self._content(message, trained=True)
        ends_answer = _carries_loss(before)
        if role in ("tool", "observation"):
            head: list[Piece] = [] if previous == role else [Special("<|observation|>", ends_answer)]
            if self.template == GLM41V:
                return [*head, Text("\n"), *self._content(message)]
            response = [Text("\n"), Special("<tool_response>"), Text("\n"), *self._content(message), Text("\n")]
            return [*head, *response, Special("</tool_response>")]
        head = [Special(f"<|{role}|>", ends_answer), Text("\n")]
        if role == "assistant":
            answer = self._answer(index, message)
            return [*head, *(answer if _carries_loss(message) else map(_untrained, answer))]
        body = self._content(message)
        if role == "user" and self.template == GLM45V and not self.thinking:
            body.append(Special("/nothink"))
        return [*head, *body]

    def _answer(self, index: int, message: Json) -> list[Piece]:
        reasoning, answer = self._reasoning_and_answer(message)
        kept = self.thinking and index > self.last_user
        # Only GLM-4.5V has the mark that asks for it; without a mark the same prompt would ask for both.
        learned = self.template == GLM45V and not self.thinking and reasoning == ""
        out: list[Piece]
        if kept or learned:
            thought = [Text(reasoning, True)] if reasoning else []
            out = [Special("<think>", True), *thought, Special("</think>", True), *self._opening(True)]
        else:
            out = self.no_thinking()
        out += answer
        if self.template == GLM41V:
            return [*out, Special("</answer>", True)]
        calls = message.get("tool_calls") or ()
        if not answer and out[-1] == Text("\n", kept or learned):
            out.pop()  # the line end belongs to the answer
        for call in calls:
            out += self._tool_call(call)
        return out

    def no_thinking(self) -> list[Piece]:
        """The empty thinking and what stands between it and the answer: given, not learned."""
        return [Special("<think>"), Special("</think>"), *self._opening(False)]

    def _opening(self, trained: bool) -> list[Piece]:
        return [Text("\n", trained)] if self.template == GLM45V else [Special("<answer>", trained)]

    def _tool_call(self, call: Json) -> list[Piece]:
        function: Json = call.get("function", call)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                raise SampleError(self.key, "the arguments of a tool call are not JSON") from None
        if not isinstance(function.get("name"), str) or not isinstance(arguments, dict):
            raise SampleError(self.key, "a tool call needs a name and an object of arguments")
        out: list[Piece] = [Text("\n", True), Special("<tool_call>", True), Text(function["name"] + "\n", True)]
        for name, value in arguments.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            out += [Special("<arg_key>", True), Text(str(name), True), Special("</arg_key>", True), Text("\n", True)]
            out += [Special("<arg_value>", True), Text(text, True), Special("</arg_value>", True), Text("\n", True)]
        return [*out, Special("</tool_call>", True)]

    def _content(self, message: Json, trained: bool = False) -> list[Piece]:
        """Parts in order: text as it stands, media as placeholders."""
        content = message.get("content")
        if isinstance(content, str):
            return [Text(content, trained)] if content else []
        if not isinstance(content, list):
            raise SampleError(self.key, f"content of a {message['role']} message is neither text nor a list of parts")
        out: list[Piece] = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in (IMAGE, VIDEO):
                out.append(Media(kind))
            elif kind == "text" and isinstance(part.get("text"), str):
                out += [Text(part["text"], trained)] if part["text"] else []
            else:
                raise SampleError(self.key, f"a content part of type {kind!r} is not text, image or video")
        return out

    def _reasoning_and_answer(self, message: Json) -> tuple[str | None, list[Piece]]:
        """An assistant message as (reasoning, answer pieces); tags written inside the text are taken apart. None: the
        message says nothing of reasoning."""
        pieces = self._content({**message, "content": message.get("content") or ""}, trained=True)
        reasoning = message.get("reasoning_content")
        first = pieces[0] if pieces else None
        if isinstance(first, Text) and "</think>" in first.text:
            head, _, tail = first.text.partition("</think>")
            reasoning = reasoning or head.split("<think>")[-1]
            pieces = [Text(tail, True), *pieces[1:]]
        answer: list[Piece] = []
        for position, piece in enumerate(pieces):
            if not isinstance(piece, Text):
                answer.append(piece)
                continue
            text = piece.text.replace("<answer>", "").replace("</answer>", "")
            text = text.lstrip() if position == 0 else text
            text = text.rstrip() if position == len(pieces) - 1 else text
            for part in filter(None, _ANSWER_MARKUP.split(text)):
                answer.append(Special(part, True) if _ANSWER_MARKUP.fullmatch(part) else Text(part, True))
        return None if reasoning is None else reasoning.strip(), answer


def _is_answer(message: Json) -> bool:
    return bool(message["role"] == "assistant")


def _carries_loss(message: Json) -> bool:
    return _is_answer(message) and message.get("weight") != 0


def _untrained(piece: Piece) -> Piece:
    return piece if isinstance(piece, Media) else replace(piece, trained=False)


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbouring texts that are trained alike become one, so that they are tokenized as one."""
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if isinstance(piece, Text) and isinstance(last, Text) and piece.trained == last.trained:
            out[-1] = Text(last.text + piece.text, piece.trained)
        else:
            out.append(piece)
    return out


def as_text(pieces: Sequence[Piece]) -> str:
    """The rendered string, media as `<|image|>` or `<|video|>` inside their markup, for people and tests."""
    marks = {kind: f"<|begin_of_{kind}|><|{kind}|><|end_of_{kind}|>" for kind in (IMAGE, VIDEO)}
    return "".join(
        marks[p.kind] if isinstance(p, Media) else p.name if isinstance(p, Special) else p.text for p in pieces
    )
