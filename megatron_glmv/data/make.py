"""Conversations in JSONL, with media files beside them, to shards and their index; nothing is lost silently."""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from megatron_glmv.data.conversation import media_parts
from megatron_glmv.data.errors import DataError, SampleError
from megatron_glmv.data.index import build_index, parse_conversation
from megatron_glmv.data.probe import probe
from megatron_glmv.data.processes import process_pool
from megatron_glmv.data.progress import track
from megatron_glmv.data.shards import MAX_JSON_BYTES, MAX_MEMBER_BYTES, ShardWriter, shard_paths
from megatron_glmv.data.types import Json

REJECTS = "rejects.jsonl"
MAX_KEY = 80
"""Longest key made from an id: with a member's name it must fit the 100 bytes of a tar header."""
AHEAD = 4
"""Conversations in flight per worker; each may hold its media in memory."""


@dataclass(frozen=True)
class Summary:
    """What `make_shards` did: counts, total bytes of the media, and where rejects are listed (None: there are none)."""

    samples: int
    rejected: int
    media: int
    media_bytes: int
    shards: int
    rejects: Path | None


@dataclass(frozen=True)
class Source:
    """One conversation as text, where it stands, and the folder that its media paths are relative to."""

    where: str
    text: bytes
    root: Path


@dataclass(frozen=True)
class Prepared:
    """One conversation whose media were read and looked at, or the reason why it is rejected."""

    where: str
    ident: str
    conversation: Json
    media: dict[str, bytes]
    reason: str = ""


def make_shards(
    out: Path,
    *,
    jsonl: Path | None = None,
    directory: Path | None = None,
    samples_per_shard: int = 1000,
    workers: int = 1,
) -> Summary:
    """Write shards and index into `out`, which must hold no shards yet.

    Sources: one JSONL file, or a directory whose `*.jsonl` (a conversation a line) and `*.json` (one conversation)
    files are taken in order of their names. Media paths are relative to the file and must stay inside its folder. A
    conversation that is unusable (not JSON, a medium missing or unreadable, an id used twice) is listed in
    `out/rejects.jsonl` with its place and reason. `workers` processes read and check the media; the result does not
    depend on their number. Raises DataError when there is no source or not one usable conversation.
    """
    files = _source_files(jsonl, directory)
    out = Path(out)
    ids: dict[str, str] = {}
    rejects: list[Json] = []
    samples = media = media_bytes = 0
    with ShardWriter(out, samples_per_shard=samples_per_shard) as writer:
        total = sum(_count(file) for file in files)
        for prepared in track(_prepare_all(_sources(files), workers), "make", total):
            key = safe_key(prepared.ident)
            reason = prepared.reason
            if not reason and key in ids:
                reason = f"id {prepared.ident!r} was already used at {ids[key]}"
            if reason:
                rejects.append({"source": prepared.where, "id": prepared.ident, "reason": reason})
                continue
            ids[key] = prepared.where
            writer.add(key, prepared.conversation, prepared.media)
            samples += 1
            media += len(prepared.media)
            media_bytes += sum(map(len, prepared.media.values()))
    listed = out / REJECTS
    listed.unlink(missing_ok=True)
    if rejects:
        listed.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejects), encoding="utf-8")
    if not samples:
        first = f"; the first reject: {rejects[0]['source']}: {rejects[0]['reason']}" if rejects else ""
        raise DataError(out, f"no usable conversation in {', '.join(map(str, files))}{first}")
    build_index(out, workers if workers > 1 else 0)
    return Summary(samples, len(rejects), media, media_bytes, len(shard_paths(out)), listed if rejects else None)


def _source_files(jsonl: Path | None, directory: Path | None) -> list[Path]:
    if (jsonl is None) == (directory is None):
        raise DataError("make_shards", "give either a JSONL file or a directory")
    if jsonl is not None:
        if not Path(jsonl).is_file():
            raise DataError(jsonl, "is not a file")
        return [Path(jsonl)]
    assert directory is not None
    files = sorted(path for path in Path(directory).glob("*.json*") if path.suffix in (".json", ".jsonl"))
    if not files:
        raise DataError(directory, "holds no *.jsonl or *.json file")
    return files


def _count(file: Path) -> int:
    if file.suffix == ".json":
        return 1
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _sources(files: list[Path]) -> Iterator[Source]:
    for file in files:
        with file.open("rb") as lines:
            if file.suffix == ".json":
                yield Source(file.name, lines.read(MAX_JSON_BYTES + 1), file.parent)
                continue
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield Source(f"{file.name}:{number}", line, file.parent)


def _prepare_all(sources: Iterator[Source], workers: int) -> Iterator[Prepared]:
    """`prepare` of each source in order, with a bounded number of them in memory."""
    if workers <= 1:
        yield from map(prepare, sources)
        return
    with process_pool(workers) as pool:
        ahead: deque[Future[Prepared]] = deque()
        for source in sources:
            ahead.append(pool.submit(prepare, source))
            if len(ahead) > AHEAD * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def prepare(source: Source) -> Prepared:
    """Read the media of one conversation and give them member names; an error becomes the reason of a rejection."""
    ident = source.where
    media: dict[str, bytes] = {}
    names: dict[tuple[str, Path], str] = {}
    try:
        conversation = parse_conversation(source.where, source.text)
        ident = str(conversation.get("id") or source.where)
        for part in media_parts(conversation):
            kind = part["type"]
            path = inside(source.root, part[kind])
            if (kind, path) not in names:
                name = f"{len(names)}{extension(path)}"
                data = _read(path, part[kind])
                if error := probe(kind, part[kind], data).error:
                    raise SampleError(part[kind], error)
                names[kind, path], media[name] = name, data
            part[kind] = names[kind, path]
    except SampleError as e:
        return Prepared(source.where, ident, {}, {}, e.reason if e.key == source.where else str(e))
    except ValueError as e:
        return Prepared(source.where, ident, {}, {}, str(e))
    return Prepared(source.where, ident, conversation, media)


def inside(root: Path, name: str) -> Path:
    """The file `name` below `root`, links followed. Raises SampleError when it lies elsewhere or is no plain file."""
    if "\0" in name:
        raise SampleError(repr(name), "is not a path")
    base = root.resolve()
    try:
        path = (base / name).resolve(strict=True)
    except (OSError, RuntimeError) as e:
        raise SampleError(name, "no such file") from e
    if Path(name).is_absolute() or not path.is_relative_to(base):
        raise SampleError(name, "lies outside the folder of the conversations")
    if not path.is_file():
        raise SampleError(name, "is not a file")
    return path


def _read(path: Path, name: str) -> bytes:
    size = path.stat().st_size
    if not 0 < size <= MAX_MEMBER_BYTES:
        raise SampleError(name, f"{size} bytes, allowed are 1 .. {MAX_MEMBER_BYTES}")
    return path.read_bytes()


def extension(path: Path) -> str:
    """`.jpg` of `a.JPG`; nothing where the suffix is not a plain short word."""
    suffix = path.suffix.lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ""


def safe_key(ident: str) -> str:
    """A key of letters, digits, `_` and `-` for any id; a changed id carries a hash, so that ids stay distinct."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", ident)
    if plain == ident and len(plain) <= MAX_KEY and not plain.startswith("-"):
        return plain
    return f"k_{plain[: MAX_KEY - 16]}_{hashlib.sha256(ident.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
