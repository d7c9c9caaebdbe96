"""Where a step's results lie: one file of JSON lines for a step and a shard, whole or not there.

A result's manifest is written last and names what it was made from (options, shard, results before it), so that a run
that is started again does what is missing or out of date, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.types import Json


def fingerprint(values: Json) -> str:
    """sha256 of plain values: equal values, equal text."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """The file is there with all its bytes, or as it was before, whenever the process or the machine stops.

    Its folder is not flushed: a name that a power failure takes back is a result that is made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@dataclass(frozen=True)
class Result:
    """The lines of one step for one shard."""

    path: Path

    @property
    def manifest(self) -> Path:
        return self.path.with_suffix(".manifest.json")

    def done(self, made_from: str) -> bool:
        """It is whole and was made from this; other files it speaks of (paths relative to this one) are there too."""
        said = self._said()
        if said.get("made_from") != made_from:
            return False
        files: Mapping[str, int] = {self.path.name: said["bytes"], **said["files"]}
        return all(_size(self.path.parent / name) == size for name, size in files.items())

    def commit(
        self, lines: Iterable[Json], made_from: str, identity: Json, files: Mapping[str, int] | None = None
    ) -> None:
        """`identity` is the step's: who reads the lines says which one is expected."""
        data = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        raw = data.encode("utf-8", "surrogatepass")
        write_whole(self.path, raw)
        said = {"made_from": made_from, "rules": fingerprint(identity), "bytes": len(raw)}
        said["sha256"] = hashlib.sha256(raw).hexdigest()
        write_whole(self.manifest, json.dumps(said | {"files": dict(files or {})}, indent=1).encode())

    def sha256(self, identity: Json) -> str:
        """Raises DataError when the result is not there, or a step of another identity made it."""
        said = self._said()
        if not said:
            raise DataError(self.path, "is not there: its part of the work was not done, or is being done still")
        if said["rules"] != fingerprint(identity):
            raise DataError(self.path, "was made with other options; run its phase again with these")
        return str(said["sha256"])

    def lines(self, identity: Json) -> list[Json]:
        """Raises DataError as above, or when the lines were changed."""
        expected = self.sha256(identity)
        raw = self.path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != expected:
            raise DataError(self.path, "differs from its manifest (sha256): remove both and run the step again")
        return [json.loads(line) for line in raw.decode("utf-8", "surrogatepass").split("\n") if line]

    def _said(self) -> Json:
        try:
            said: Json = json.loads(self.manifest.read_bytes())
            return said if {"made_from", "rules", "bytes", "sha256", "files"} <= said.keys() else {}
        except (OSError, ValueError):
            return {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


@dataclass(frozen=True)
class Work:
    """The folder of all results of a corpus."""

    directory: Path

    def result(self, step: str, shard: str) -> Result:
        return Result(self.directory / step / f"{Path(shard).stem}.jsonl")
