"""Tar shards in webdataset's format: written deterministically, read by offset, never extracted or unpickled.

A sample is the members `<key>.json` (the conversation) and `<key>.<name>` (its media), next to each other. The key is
the path up to the first dot of its base name, as in webdataset.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from megatron_glmv.data.conversation import media_of
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.types import Json

BLOCK = 512
MAX_MEMBERS = 1 << 20
"""Members of one shard."""
MAX_MEMBER_BYTES = 1 << 31
MAX_JSON_BYTES = 1 << 26
"""Largest conversation."""
MAX_NAME_BYTES = 255
MAX_EXTENDED_BYTES = 1 << 16
"""Largest PAX or GNU header in front of a member."""
CONVERSATION = "json"
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_/-]*")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Member:
    """One file of a shard: `size` bytes from `offset`."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        return split_name(self.name)[0]


def split_name(name: str) -> tuple[str, str]:
    """webdataset's rule: `dir/a.0.png` -> (`dir/a`, `0.png`)."""
    folder, slash, base = name.rpartition("/")
    key, _, field = base.partition(".")
    return folder + slash + key, field


def check_names(key: str, names: Iterable[str]) -> None:
    """Raises DataError where ShardWriter cannot store a sample under this key with these members."""
    if not _KEY.fullmatch(key) or "//" in key or key.endswith("/"):
        raise DataError(key, "a key holds letters, digits, `_`, `-` and inner `/` only")
    for name in names:
        if not _NAME.fullmatch(name) or name == CONVERSATION:
            raise DataError(
                key, f"member name {name!r} holds more than letters, digits, `_`, `-` and `.`, or is reserved"
            )
        _header(f"{key}.{name}", 0)
    _header(f"{key}.{CONVERSATION}", 0)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    try:
        return info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError as e:
        raise DataError(name, f"cannot be stored in a tar header: {e}") from e


class ShardWriter:
    """Writes samples into `<prefix>-000000.tar`, ...; equal samples give equal bytes.

    A shard has its final name only once it is complete. Raises DataError on a key or member name that cannot be stored,
    a key used twice, or a medium of the conversation that was not handed over.
    """

    def __init__(self, directory: Path, *, samples_per_shard: int = 1000, prefix: str = "shard") -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.samples_per_shard = samples_per_shard
        self.prefix = prefix
        self.count = 0
        self._keys: set[str] = set()
        self._file: BinaryIO | None = None
        self._path = self.directory
        if any(self.directory.glob(f"{prefix}-*.tar")):
            raise DataError(self.directory, f"already holds {prefix}-*.tar shards; write to an empty directory")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._file is not None:
            self._file.close()
            self._path.with_suffix(".partial").unlink()

    def add(self, key: str, conversation: Json, media: Mapping[str, bytes]) -> None:
        """Append one sample; `media` maps member names that the conversation refers to, as in `0.png`, to bytes."""
        if key in self._keys:
            raise DataError(key, "this key was already written")
        check_names(key, media)
        try:
            missing = {name for _, name in media_of(conversation)} - media.keys()
        except ValueError as e:
            raise DataError(key, str(e)) from e
        if missing:
            raise DataError(key, f"the conversation refers to {sorted(missing)}, which was not handed over")
        if self._file is None or self.count % self.samples_per_shard == 0:
            self._next()
        text = json.dumps(conversation, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        self._write(f"{key}.{CONVERSATION}", text.encode())
        for name in sorted(media):
            self._write(f"{key}.{name}", media[name])
        self._keys.add(key)
        self.count += 1

    def _next(self) -> None:
        self._finish()
        self._path = self.directory / f"{self.prefix}-{self.count // self.samples_per_shard:06d}.tar"
        self._file = self._path.with_suffix(".partial").open("wb")

    def _finish(self) -> None:
        if self._file is not None:
            self._file.write(bytes(2 * BLOCK))
            self._file.close()
            self._path.with_suffix(".partial").rename(self._path)
            self._file = None

    def _write(self, name: str, data: bytes) -> None:
        assert self._file is not None
        self._file.write(_header(name, len(data)))
        self._file.write(data)
        self._file.write(bytes(-len(data) % BLOCK))


def scan_shard(path: Path) -> Iterator[Member]:
    """The members of a shard in order, headers only.

    Raises DataError on anything but plain files (directories are passed over), on names that leave the shard, on
    duplicates, on sizes and counts over the caps, and on a cut or compressed shard.
    """
    try:
        with path.open("rb") as file:
            yield from _scan(file, path)
    except OSError as e:
        raise DataError(path, e.strerror or str(e)) from e


def _scan(file: BinaryIO, path: Path) -> Iterator[Member]:
    end = os.fstat(file.fileno()).st_size
    seen: set[str] = set()
    renamed, resized = "", -1
    at = zeros = 0
    while at + BLOCK <= end:
        file.seek(at)
        block = file.read(BLOCK)
        at += BLOCK
        if not any(block):
            zeros += 1
            continue
        if zeros:
            raise DataError(path, f"a member behind the end-of-archive mark at byte {at - BLOCK}")
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as e:
            raise DataError(path, f"no tar header at byte {at - BLOCK} ({e}); compressed shards are not read") from e
        size = info.size if resized < 0 or info.type in (b"x", b"g", b"L") else resized
        if size < 0 or size > MAX_MEMBER_BYTES or at + size > end:
            raise DataError(path, f"member {info.name!r} of {size} bytes is cut or over the cap of {MAX_MEMBER_BYTES}")
        following = at + size + -size % BLOCK
        if info.type in (b"x", b"g", b"L"):
            if size > MAX_EXTENDED_BYTES:
                raise DataError(path, f"extended header of {size} bytes at byte {at - BLOCK}")
            if info.type == b"L":
                renamed = file.read(size).rstrip(b"\0").decode("utf-8", "replace")
            elif info.type == b"x":
                renamed, resized = _pax(file.read(size), path, renamed)
            at = following
            continue
        name = renamed or info.name
        renamed, resized = "", -1
        if info.type == tarfile.DIRTYPE and size == 0:
            at = following
            continue
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise DataError(path, f"member {name!r} is not a plain file (links and devices are refused)")
        _check_name(name, path)
        if name in seen:
            raise DataError(path, f"member {name!r} appears twice")
        if len(seen) == MAX_MEMBERS:
            raise DataError(path, f"more than {MAX_MEMBERS} members")
        seen.add(name)
        yield Member(name, at, size)
        at = following
    if not zeros:
        raise DataError(path, "ends without an end-of-archive mark: the shard is cut")


def _pax(data: bytes, path: Path, name: str) -> tuple[str, int]:
    """Name and size of a PAX header, `<length> <key>=<value>\\n` records; the size is -1 where it has none."""
    size, at = -1, 0
    while at < len(data):
        digits = data[at : at + 20].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        record = data[at : at + length]
        if length < len(digits) + 3 or not record.endswith(b"\n"):
            raise DataError(path, "damaged PAX header")
        key, _, value = record[len(digits) + 1 : -1].partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "replace")
        elif key == b"size":
            size = int(value) if value.isdigit() else MAX_MEMBER_BYTES + 1
        elif key == b"linkpath" or key.startswith(b"GNU.sparse"):
            raise DataError(path, f"PAX record {key.decode()}: links and sparse files are refused")
        at += length
    return name, size


def _check_name(name: str, path: Path) -> None:
    bad = not name or "\0" in name or "\\" in name or name.startswith("/") or len(name.encode()) > MAX_NAME_BYTES
    if bad or any(part in ("", ".", "..") for part in name.removeprefix("./").split("/")):
        raise DataError(path, f"member name {name!r} is absolute, too long or leaves the shard")


def shard_paths(directory: Path) -> list[Path]:
    """The shards of a data set, in order of their names. Raises DataError when there is none."""
    paths = sorted(Path(directory).glob("*.tar"))
    if not paths:
        raise DataError(directory, "holds no *.tar shard")
    return paths
