"""The index beside the shards: where every byte lies, its sha256, and what is known of each medium without decoding it.

`index.jsonl` has one line per sample in shard order, `index.json` says what it must look like; both are made by
`build_index`. Lengths of samples are known from here before anything is decoded.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from megatron_glmv.data.conversation import media_of
from megatron_glmv.data.errors import DataError, SampleError
from megatron_glmv.data.facts import MediaFacts
from megatron_glmv.data.probe import probe
from megatron_glmv.data.processes import process_pool
from megatron_glmv.data.progress import track
from megatron_glmv.data.shards import CONVERSATION, MAX_JSON_BYTES, Member, scan_shard, shard_paths, split_name
from megatron_glmv.data.types import Json

__all__ = [
    "IndexEntry",
    "MediaFacts",
    "ShardDataset",
    "build_index",
    "index_shard",
    "parse_conversation",
    "write_index",
]
VERSION = 1
HEADER, LINES = "index.json", "index.jsonl"


@dataclass(frozen=True)
class IndexEntry:
    """One sample. `error` is the reason why it cannot be used at all (unreadable conversation, missing medium).

    A medium that cannot be used says so in its own `MediaFacts.error`, and `reason` finds either.
    """

    key: str
    shard: str
    domain: str
    members: dict[str, tuple[int, int, str]]
    """name -> (offset in the shard, size, sha256)."""
    media: tuple[MediaFacts, ...]
    """In order of appearance in the conversation."""
    error: str = ""

    @property
    def reason(self) -> str:
        """Why the sample cannot be used, or an empty string."""
        return self.error or next((f"{facts.member}: {facts.error}" for facts in self.media if facts.error), "")

    def to_json(self) -> Json:
        values: Json = {"key": self.key, "shard": self.shard, "domain": self.domain, "members": self.members}
        values["media"] = [facts.to_json() for facts in self.media]
        return values | ({"error": self.error} if self.error else {})

    @classmethod
    def from_json(cls, values: Json) -> IndexEntry:
        members = {name: (int(offset), int(size), str(sha)) for name, (offset, size, sha) in values["members"].items()}
        media = tuple(MediaFacts.from_json(facts) for facts in values["media"])
        return cls(values["key"], values["shard"], values["domain"], members, media, values.get("error", ""))


def build_index(directory: Path, workers: int = 0) -> None:
    """Read every shard of `directory` once and write its index.

    `workers` processes share the shards; 0 does it in this one. Raises DataError on a shard that is not safe to read or
    two samples with one key; a bad medium is an error in its line, for the quarantine of the run.
    """
    paths = shard_paths(Path(directory))
    write_index(Path(directory), paths, track(_per_shard(paths, workers), "index", len(paths)))


def write_index(directory: Path, paths: Sequence[Path], shards: Iterable[list[tuple[str, bytes]]]) -> None:
    """The index of `paths` from what `index_shard` gave for each of them, in order. Raises DataError as above."""
    (directory / HEADER).unlink(missing_ok=True)  # an interrupted build must not leave an old header beside new lines
    digest, count, keys = hashlib.sha256(), 0, set[str]()
    partial = directory / (LINES + ".partial")
    with partial.open("wb") as out:
        for lines in shards:
            for key, line in lines:
                if key in keys:
                    raise DataError(directory, f"key {key!r} appears in two shards")
                keys.add(key)
                out.write(line)
                digest.update(line)
                count += 1
    header = {"version": VERSION, "count": count, "bytes": partial.stat().st_size, "sha256": digest.hexdigest()}
    header["shards"] = {path.name: path.stat().st_size for path in paths}
    partial.rename(directory / LINES)
    (directory / (HEADER + ".partial")).write_text(json.dumps(header, indent=1) + "\n")
    (directory / (HEADER + ".partial")).rename(directory / HEADER)


def _per_shard(paths: list[Path], workers: int) -> Iterator[list[tuple[str, bytes]]]:
    if workers == 0:
        yield from map(index_shard, paths)
        return
    with process_pool(workers) as pool:
        yield from pool.map(index_shard, paths)


def index_shard(path: Path) -> list[tuple[str, bytes]]:
    """(key, line with newline) of each sample of one shard."""
    lines: list[tuple[str, bytes]] = []
    seen: set[str] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for key, members in groupby(scan_shard(path), key=lambda member: member.key):
            if key in seen:
                raise DataError(path, f"members of sample {key!r} do not lie next to each other")
            seen.add(key)
            entry = _entry(path.name, key, {split_name(m.name)[1]: m for m in members}, data)
            lines.append((key, json.dumps(entry.to_json(), separators=(",", ":")).encode() + b"\n"))
    return lines


def _entry(shard: str, key: str, members: dict[str, Member], data: mmap.mmap) -> IndexEntry:
    raw = {name: data[m.offset : m.offset + m.size] for name, m in members.items()}
    placed = {name: (m.offset, m.size, hashlib.sha256(raw[name]).hexdigest()) for name, m in members.items()}
    try:
        conversation = parse_conversation(key, raw.get(CONVERSATION))
        references = media_of(conversation)
    except (SampleError, ValueError) as e:
        return IndexEntry(key, shard, "", placed, (), e.reason if isinstance(e, SampleError) else str(e))
    domain = str(conversation.get("domain", ""))
    if missing := sorted({name for _, name in references} - raw.keys()):
        return IndexEntry(key, shard, domain, placed, (), f"the conversation refers to {missing}, not in the shard")
    found = {(kind, name): probe(kind, name, raw[name]) for kind, name in set(references)}
    return IndexEntry(key, shard, domain, placed, tuple(found[reference] for reference in references))


def parse_conversation(key: str, data: bytes | None) -> Json:
    """Raises SampleError when there is none, it is too large or not a JSON object."""
    if data is None:
        raise SampleError(key, f"has no member `{CONVERSATION}`")
    if len(data) > MAX_JSON_BYTES:
        raise SampleError(key, f"conversation of {len(data)} bytes, at most {MAX_JSON_BYTES}")
    try:
        conversation = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise SampleError(key, f"conversation is not JSON: {e}") from e
    if not isinstance(conversation, dict):
        raise SampleError(key, "conversation is not a JSON object")
    return conversation


class ShardDataset:
    """Random access to the samples of an indexed directory; another process that is handed one opens its own.

    Raises DataError when the index is missing, damaged or older than the shards.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        header = self._header()
        path = self.directory / LINES
        try:
            with path.open("rb") as file:
                self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if header["bytes"] else b""
        except (OSError, ValueError) as e:
            raise DataError(path, f"{e}; build the index again") from e
        if len(self._lines) != header["bytes"] or hashlib.sha256(self._lines).hexdigest() != header["sha256"]:
            raise DataError(path, f"differs from what {HEADER} says; build the index again")
        ends = np.flatnonzero(np.frombuffer(self._lines, np.uint8) == ord("\n")) + 1
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        self._files: dict[str, int] = {}
        self._pid = os.getpid()
        self._keys: dict[str, int] = {}
        if len(ends) != header["count"]:
            raise DataError(path, f"holds {len(ends)} samples, {HEADER} says {header['count']}; build the index again")

    def _header(self) -> Json:
        path = self.directory / HEADER
        try:
            header: Json = json.loads(path.read_text())
            shards, version = header["shards"], header["version"]
        except FileNotFoundError as e:
            raise DataError(path, "no index here; `glmv data make` writes one beside the shards") from e
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise DataError(path, f"unreadable ({type(e).__name__}); build the index again") from e
        if version != VERSION:
            raise DataError(path, f"version {version}, this program reads {VERSION}; build the index again")
        here = {p.name: p.stat().st_size for p in self.directory.glob("*.tar")}
        if here != shards:
            changed = sorted(name for name, _ in here.items() ^ shards.items())
            raise DataError(path, f"is stale: {', '.join(changed[:4])} changed since; build the index again")
        return header

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __reduce__(self) -> tuple[type[ShardDataset], tuple[Path]]:
        return type(self), (self.directory,)  # another process opens its own files

    def entry(self, i: int) -> IndexEntry:
        """Sample `i` in shard order. Raises IndexError outside 0 <= i < len."""
        return IndexEntry.from_json(json.loads(self._line(i)))

    def conversation(self, i: int) -> Json:
        """Raises SampleError when it is unreadable."""
        entry = self.entry(i)
        return parse_conversation(entry.key, self._read(entry, CONVERSATION))

    def member(self, i: int, name: str) -> bytes:
        """Bytes of one member. Raises SampleError when it is missing or its sha256 differs from the index."""
        return self._read(self.entry(i), name)

    def find(self, key: str) -> int:
        """Number of the sample with this key. Raises KeyError."""
        if not self._keys:
            self._keys = {self._key(i): i for i in range(len(self))}
        return self._keys[key]

    def _line(self, i: int) -> bytes:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return self._lines[self._starts[i] : self._starts[i + 1]]

    def _key(self, i: int) -> str:
        key, _ = json.JSONDecoder().raw_decode(self._line(i)[:1024].decode(), len('{"key":'))
        return str(key)

    def _read(self, entry: IndexEntry, name: str) -> bytes:
        if name not in entry.members:
            raise SampleError(entry.key, f"has no member `{name}`")
        offset, size, sha = entry.members[name]
        data = os.pread(self._open(entry.shard), size, offset)
        if hashlib.sha256(data).hexdigest() != sha:
            raise SampleError(entry.key, f"member `{name}` differs from the index (sha256)")
        return data

    def _open(self, shard: str) -> int:
        if self._pid != os.getpid():
            self._files, self._pid = {}, os.getpid()
        if shard not in self._files:
            try:
                self._files[shard] = os.open(self.directory / shard, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as e:
                raise DataError(self.directory / shard, e.strerror or str(e)) from e
        return self._files[shard]

    def close(self) -> None:
        """Close the shards; later reads open them again."""
        for file in self._files.values() if self._pid == os.getpid() else ():
            os.close(file)
        self._files = {}

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()
