"""Step 6: which concepts a caption names. Removes nothing; `balance` counts them over the whole corpus.

A concept is a word or a few in a row, compared as every step compares words (case folded, Chinese by the character).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.prepare import text
from megatron_glmv.data.prepare.options import Options
from megatron_glmv.data.prepare.source import Shard
from megatron_glmv.data.prepare.step import Entrant
from megatron_glmv.data.types import Json

VERSION = 1


class Concepts:
    name = "concepts"

    def skipped(self, options: Options) -> str:
        return "" if options.balance.cap else "no cap; balance.cap=N thins concepts with more than N samples"

    def identity(self, options: Options) -> Json:
        file = options.balance.concepts
        listed = hashlib.sha256(_file(file)).hexdigest() if file else ""
        return {"version": VERSION, "captions": options.captions, "concepts": listed}

    def lines(self, shard: Shard, entrants: Sequence[Entrant], options: Options) -> list[Json]:
        known = _concepts(options.balance.concepts) if options.balance.concepts else None
        return [
            {"key": e.sample.key, "concepts": sorted(named(e, known))}
            if e.sample.domain in options.captions
            else {"key": e.sample.key}
            for e in entrants
        ]


def named(entrant: Entrant, known: dict[int, frozenset[str]] | None) -> set[str]:
    """Concepts in the caption; without a list those that the conversation itself gives as `concepts`."""
    if known is None:
        given = entrant.sample.conversation.get("concepts")
        return {" ".join(text.words(c)) for c in given if isinstance(c, str)} if isinstance(given, list) else set()
    words = text.words(text.learned(entrant.sample.conversation))
    found: set[str] = set()
    for length, concepts in known.items():
        spans = (" ".join(words[at : at + length]) for at in range(len(words) - length + 1))
        found |= concepts.intersection(spans)
    return found


@lru_cache(1)
def _concepts(file: str) -> dict[int, frozenset[str]]:
    """Length in words -> concepts."""
    found: dict[int, set[str]] = {}
    for line in _file(file).decode("utf-8", "replace").splitlines():
        if words := text.words(line):
            found.setdefault(len(words), set()).add(" ".join(words))
    if not found:
        raise DataError(file, "balance.concepts: holds no concept")
    return {length: frozenset(concepts) for length, concepts in found.items()}


def _file(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as e:
        raise DataError(file, f"balance.concepts: {e.strerror}") from e
