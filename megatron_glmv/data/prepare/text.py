"""The text of a sample, and its words as every step counts them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator

from megatron_glmv.data.types import Json

TARGETS = ("assistant", "document")
"""Roles whose text is learned."""
_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")


def pieces(conversation: Json, roles: tuple[str, ...] = ()) -> Iterator[str]:
    """The texts of messages of these roles (none named: of all), in order; the shape was checked before."""
    for message in conversation["messages"]:
        if roles and message["role"] not in roles:
            continue
        content = message.get("content") or ()
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text" and isinstance(part.get("text"), str):
                yield part["text"]


def whole(conversation: Json) -> str:
    return "\n".join(pieces(conversation))


def learned(conversation: Json) -> str:
    """What carries loss; all text where nothing does."""
    return "\n".join(pieces(conversation, TARGETS)) or whole(conversation)


def words(text: str) -> list[str]:
    """Case-folded runs of letters and digits; each Chinese character is a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def digest(text: str) -> str:
    """The same for texts that differ in case, spaces and punctuation only: 32 hex digits."""
    return hashlib.sha256(" ".join(words(text)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def draw(*what: object) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    raw = hashlib.sha256("\0".join(map(str, what)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(raw[:7], "big") / (1 << 56)
