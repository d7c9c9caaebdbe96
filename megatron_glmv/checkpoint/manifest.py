"""manifest.json, the commit record of a checkpoint: a directory is a checkpoint when it holds one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_glmv.checkpoint.errors import ReadError

Json = dict[str, Any]

NAME = "manifest.json"
FORMAT = "megatron_glmv.checkpoint"
VERSION = 1
MAX_BYTES = 64 << 20
"""A manifest has ~130 bytes per file; more than this is not a manifest."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}|\.metadata")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint directory."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint is, who may load it, and every file it consists of (except manifest.json itself)."""

    step: int
    optimizer: bool
    """The optimizer's state is inside; False: weights only."""
    model: Json
    """The model's config, as `dataclasses.asdict` gives it and JSON keeps it."""
    tokenizer_fingerprint: str
    config_fingerprint: str
    """Of the whole run's config. For the record: a resumed run may differ (learning rate, layout)."""
    topology: Json
    """The layout it was saved on. For the record: any layout can load it."""
    package_version: str
    libraries: dict[str, str]
    """Versions of torch and megatron-core that wrote the shards."""
    files: dict[str, FileRecord]

    def to_json(self) -> str:
        """JSON with a `digest` over everything else, so that damage to the manifest itself is seen."""
        content: Json = {"format": FORMAT, "format_version": VERSION, **asdict(self)}
        return json.dumps({**content, "digest": _digest(content)}, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_manifest(directory: Path) -> Manifest:
    """Reads and checks `directory`/manifest.json.

    Raises ReadError if it is missing, damaged, of another format version, or lists names outside the directory.
    """
    path = directory / NAME
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        content = json.loads(text) if len(text) <= MAX_BYTES else None
    except FileNotFoundError:
        raise ReadError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ReadError(f"{path} is not a manifest of {FORMAT}")
    if content.get("format_version") != VERSION:
        raise ReadError(f"{path} has format version {content.get('format_version')!r}; this program reads {VERSION}")
    if content.pop("digest", None) != _digest(content):
        raise ReadError(f"{path} is damaged: its digest does not match its content")
    return _from_json(path, content)


def _from_json(path: Path, content: Json) -> Manifest:
    fields = {name: value for name, value in content.items() if name not in ("format", "format_version", "files")}
    try:
        files = {name: FileRecord(**record) for name, record in content["files"].items()}
        manifest = Manifest(**fields, files=files)
    except (TypeError, AttributeError, KeyError) as error:
        raise ReadError(f"{path}: {error}") from None
    for name, record in files.items():
        if not _FILE_NAME.fullmatch(name) or name == NAME:
            raise ReadError(f"{path}: {name!r} is no name for a file of a checkpoint")
        if not isinstance(record.bytes, int) or record.bytes < 0 or not _SHA256.fullmatch(str(record.sha256)):
            raise ReadError(f"{path}: the record of {name} has no size and sha256")
    if not isinstance(manifest.step, int) or manifest.step < 0:
        raise ReadError(f"{path}: step is {manifest.step!r}")
    return manifest


def _digest(content: Json) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path, before: Callable[[int], object] = lambda descriptor: None) -> FileRecord:
    """Size and sha256 of a file. `before` is called with its open descriptor (a place for os.fsync)."""
    with path.open("rb") as file:
        before(file.fileno())
        digest = hashlib.file_digest(file, "sha256")
        return FileRecord(bytes=file.tell(), sha256=digest.hexdigest())


def file_problem(directory: Path, name: str, record: FileRecord, verify: bool) -> str | None:
    """What is wrong with one file, or None. `verify` also compares the sha256, which reads the whole file."""
    path = directory / name
    try:
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing"
        status = path.stat()
        if status.st_mode & 0o002:
            return f"{name} can be written by every user (chmod -R o-w {directory})"
        if status.st_size != record.bytes:
            return f"{name} has {status.st_size} bytes instead of {record.bytes}"
        if verify and hash_file(path) != record:
            return f"{name} does not have the sha256 it was saved with"
    except OSError as error:
        return f"{name} cannot be read: {error}"
    return None
