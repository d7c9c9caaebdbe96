"""Step 9: some captions written anew by a model that sees the picture, mixed with the originals at a fixed ratio.

Which captions are replaced is drawn from seed and key. An answer that breaks the domain's own rules of text, or does
not come, leaves the original; the line says so.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.prepare import text
from megatron_glmv.data.prepare.clip import is_pair
from megatron_glmv.data.prepare.endpoint import Endpoint, EndpointError
from megatron_glmv.data.prepare.heuristics import text_breaks
from megatron_glmv.data.prepare.inspect import open_picture
from megatron_glmv.data.prepare.options import Options
from megatron_glmv.data.prepare.source import Shard
from megatron_glmv.data.prepare.step import Entrant
from megatron_glmv.data.types import Json

VERSION = 1
DIRECT = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
"""Formats that endpoints take; others are sent as PNG."""
CACHE = "answers"


class Recaption:
    """`cache` is where answers are kept."""

    name = "recaption"

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def skipped(self, options: Options) -> str:
        return "" if options.recaption.endpoint else "no endpoint; name an OpenAI-compatible one in recaption.endpoint"

    def identity(self, options: Options) -> Json:
        rules = {name: getattr(options.recaption, name) for name in ("model", "ratio", "prompt", "max_tokens")}
        return {"version": VERSION, "options": rules, "seed": options.seed, "captions": options.captions}

    def lines(self, shard: Shard, entrants: Sequence[Entrant], options: Options) -> list[Json]:
        """`caption` holds a new caption, `failed` or `unusable` why the original stays. Raises DataError when more
        requests fail than recaption.max_failed allows: an endpoint that is down must not pass for a ratio of zero."""
        endpoint = Endpoint(options.recaption, self._cache)
        drawn = [e for e in entrants if is_pair(e, options) and chosen(e.sample.key, options)]
        with ThreadPoolExecutor(options.recaption.parallel) as threads:
            lines = list(threads.map(lambda e: _one(endpoint, shard, e, options), drawn))
        failed = [line for line in lines if "failed" in line]
        if len(failed) > options.recaption.max_failed * len(drawn):
            raise DataError(
                options.recaption.endpoint,
                f"{len(failed)} of {len(drawn)} requests for {shard.path.name} failed, recaption.max_failed="
                f"{options.recaption.max_failed:g}; the first: {failed[0]['failed']}. Run again: answers are kept",
            )
        found = {line["key"]: line for line in lines}
        return [found.get(e.sample.key, {"key": e.sample.key}) for e in entrants]


def chosen(key: str, options: Options) -> bool:
    return text.draw(options.seed, "recaption", key) < options.recaption.ratio


def _one(endpoint: Endpoint, shard: Shard, entrant: Entrant, options: Options) -> Json:
    sample = entrant.sample
    ((_, name),) = sample.media()
    prompt = options.recaption.prompt.replace("{caption}", text.learned(sample.conversation))
    url = data_url(name, entrant.facts["media"][0]["format"], shard.read(sample, name))
    content: list[Json] = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
    try:
        answer = endpoint.answer(content).strip()
    except EndpointError as e:
        return {"key": sample.key, "failed": str(e)}
    reason, figure = text_breaks(answer, options.rules_of(sample.domain))
    if reason:
        return {"key": sample.key, "unusable": f"{reason}: {figure}"}
    return {"key": sample.key, "caption": answer}


def data_url(name: str, kind: str, data: bytes) -> str:
    if kind not in DIRECT:
        out = io.BytesIO()
        open_picture(name, data).save(out, "PNG")
        kind, data = "png", out.getvalue()
    return f"data:{DIRECT[kind]};base64,{base64.b64encode(data).decode()}"


def with_caption(conversation: Json, caption: str) -> Json:
    """The conversation with its learned text replaced, marked as such, and the original beside it."""
    messages, placed = [], False
    for message in conversation["messages"]:
        if message["role"] in text.TARGETS and any(text.pieces({"messages": [message]})):
            message = message | {"content": _replaced(message["content"], "" if placed else caption)}
            placed = True
        messages.append(message)
    original = text.learned(conversation)
    return conversation | {"messages": messages, "caption_source": "recaption", "original_caption": original}


def _replaced(content: str | list[Json], caption: str) -> str | list[Json]:
    if isinstance(content, str):
        return caption
    parts: list[Json] = []
    for part in content:
        if part["type"] != "text":
            parts.append(part)
        elif caption:
            parts.append(part | {"text": caption})
            caption = ""
    return parts
