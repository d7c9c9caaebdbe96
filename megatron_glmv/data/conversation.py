"""The chat shape that conversations have wherever they come in, read defensively.

`{"id": ..., "messages": [{"role": "user", "content": [{"type": "image", "image": "0.png"}, ...]}, ...]}`;
content is a list of parts or plain text.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_glmv.data.types import IMAGE, VIDEO, Json


def media_parts(conversation: Json) -> Iterator[Json]:
    """The image and video parts themselves, in order of appearance. Raises ValueError where the shape is wrong."""
    messages = conversation.get("messages")
    _need(isinstance(messages, list) and bool(messages), "a conversation needs a non-empty list `messages`")
    for n, message in enumerate(messages or ()):
        well = isinstance(message, dict) and isinstance(message.get("role"), str)
        _need(well, f"messages[{n}] is not an object with a `role`")
        content = message.get("content", "")
        if isinstance(content, str) or content is None:
            continue
        _need(isinstance(content, list), f"messages[{n}].content is neither text nor a list of parts")
        for part in content:
            well = isinstance(part, dict) and isinstance(part.get("type"), str)
            _need(well, f"messages[{n}].content has a part without `type`")
            kind = part["type"]
            if kind in (IMAGE, VIDEO):
                named = isinstance(part.get(kind), str) and bool(part[kind])
                _need(named, f"messages[{n}].content has a part of type {kind} without a file in `{kind}`")
                yield part


def _need(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def media_of(conversation: Json) -> list[tuple[str, str]]:
    """(kind, member) of each medium in order of appearance; one medium may appear twice. Raises ValueError as above."""
    return [(part["type"], part[part["type"]]) for part in media_parts(conversation)]
