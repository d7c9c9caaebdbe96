"""Samples of one shard as they come from outside: not indexed, not trusted, and none of them lost silently."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from megatron_glmv.data.conversation import media_of
from megatron_glmv.data.errors import DataError, SampleError
from megatron_glmv.data.index import parse_conversation
from megatron_glmv.data.shards import CONVERSATION, Member, scan_shard, split_name
from megatron_glmv.data.types import Json


@dataclass(frozen=True)
class Sample:
    """One sample: its conversation, and where the bytes of its members lie. `error` says why it cannot be used."""

    key: str
    conversation: Json
    members: dict[str, Member]
    error: str = ""

    @property
    def domain(self) -> str:
        return str(self.conversation.get("domain", ""))

    def media(self) -> list[tuple[str, str]]:
        """(kind, member) of each distinct medium in order of first appearance."""
        return list(dict.fromkeys(media_of(self.conversation)))


class Shard:
    """A shard open for reading; use as a context."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Shard:
        try:
            with self.path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            raise DataError(self.path, str(e)) from e
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()

    def read(self, sample: Sample, name: str) -> bytes:
        member = sample.members[name]
        return self._data[member.offset : member.offset + member.size]

    def samples(self) -> Iterator[Sample]:
        """In order. Raises DataError on a shard that is not safe to read."""
        seen: set[str] = set()
        for key, members in groupby(scan_shard(self.path), key=lambda member: member.key):
            if key in seen:
                raise DataError(self.path, f"members of sample {key!r} do not lie next to each other")
            seen.add(key)
            yield self._sample(key, {split_name(m.name)[1]: m for m in members})

    def _sample(self, key: str, members: dict[str, Member]) -> Sample:
        found = members.get(CONVERSATION)
        raw = None if found is None else self._data[found.offset : found.offset + found.size]
        try:
            conversation = parse_conversation(key, raw)
            missing = sorted({name for _, name in media_of(conversation)} - members.keys())
        except SampleError as e:
            return Sample(key, {}, members, e.reason)
        except ValueError as e:
            return Sample(key, {}, members, str(e))
        if missing:
            return Sample(key, conversation, members, f"the conversation refers to {missing}, not in the shard")
        return Sample(key, conversation, members)
