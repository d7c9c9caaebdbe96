"""What a step that looks at one shard at a time is to the machinery around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_glmv.data.prepare.options import Options
from megatron_glmv.data.prepare.source import Sample, Shard
from megatron_glmv.data.types import Json

REMOVED = "removed"
"""Field of a line: why the step removes the sample, one word; `detail` may say more."""


@dataclass(frozen=True)
class Entrant:
    """A sample that all steps before kept, with the line of facts that `inspect` wrote about it."""

    sample: Sample
    facts: Json


class Step(Protocol):
    """One line comes back for each sample handed in, in order, with its `key` and perhaps `removed`.

    Lines are a pure function of the shard, `identity` and the lines before.
    """

    @property
    def name(self) -> str: ...

    def skipped(self, options: Options) -> str:
        """Why this step has nothing to do, or an empty string."""

    def identity(self, options: Options) -> Json:
        """All that its lines depend on besides the samples: a version of its rules, options, files by content."""

    def lines(self, shard: Shard, entrants: Sequence[Entrant], options: Options) -> list[Json]: ...


def verdict(key: str, reason: str, detail: str = "") -> Json:
    """A line: kept where there is no reason."""
    line: Json = {"key": key}
    if reason:
        line |= {REMOVED: reason} | ({"detail": detail} if detail else {})
    return line
