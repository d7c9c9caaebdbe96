"""Long work with files, that may be killed at any point: done piece by piece in `OUT.unfinished`, renamed at the end.

    OUT.unfinished/journal.jsonl   line 1: what the work is; then one line for each piece that is on the disk
    OUT.unfinished/...             pieces; the file that makes a directory a checkpoint comes last
    OUT                            appears whole, by one rename

A piece is a file: written under another name, made durable, renamed, and only then in the journal. So what the journal
lists is whole, and what it does not list is made again. Pieces are pure functions of the work, so a run that was killed
ends with the same bytes as one that was not.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megatron_glmv.checkpoint.errors import SaveError
from megatron_glmv.checkpoint.hf.memory import Watch, readable
from megatron_glmv.checkpoint.hf.progress import Progress
from megatron_glmv.checkpoint.manifest import FileRecord
from megatron_glmv.checkpoint.store import sync_directory
from megatron_glmv.config.errors import ConfigError

Json = dict[str, Any]
JOURNAL = "journal.jsonl"
SPARE = 64 << 20
"""Bytes that have to stay free beside what is written: index, manifest, tokenizer."""


class HashedFile:
    """A file that is written once, front to back, and hashed on the way. torch.save can write into it."""

    def __init__(self, file: IO[bytes], told: Callable[[int], None]) -> None:
        self._file, self._told, self._digest, self.bytes = file, told, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self._file.write(view)
        self.bytes += len(view)
        self._told(len(view))
        return len(view)

    def flush(self) -> None:
        """torch.save calls it."""

    def tell(self) -> int:
        return self.bytes

    def record(self) -> FileRecord:
        return FileRecord(bytes=self.bytes, sha256=self._digest.hexdigest())


@dataclass(frozen=True)
class Piece:
    """A file of the result. `write` fills it and returns what the journal shall remember of it (JSON)."""

    name: str
    bytes: int
    write: Callable[[HashedFile], Any]


@dataclass(frozen=True)
class Done:
    """A piece that is on the disk."""

    record: FileRecord
    note: Any


class Workspace:
    """The directory in which `out` is made. `identity`: JSON of everything that decides its bytes."""

    def __init__(self, out: Path, identity: Json) -> None:
        self.out, self.path = out, out.with_name(out.name + ".unfinished")
        self.plan = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._journal: IO[bytes] | None = None
        self._lock = threading.Lock()
        self.done: dict[str, Done] = {}

    def open(self) -> None:
        """Begins, or goes on where a killed run was. Raises ConfigError if another process is at it, or it is other
        work."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._journal = (self.path / JOURNAL).open("a+b")
        try:
            self._read(self._journal)
        except BaseException:
            self.close()
            raise

    def _read(self, journal: IO[bytes]) -> None:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError("--out", self.out, "another process is writing it", "wait for it") from None
        journal.seek(0)
        text = journal.read()
        text = text[: text.rfind(b"\n") + 1]  # behind it: what was being written when a run was killed
        journal.truncate(len(text))
        lines: list[Json] = [json.loads(line) for line in text.splitlines()]
        if not lines:
            self._note({"plan": self.plan})
            return
        if lines[0].get("plan") != self.plan:
            raise ConfigError(
                "--out",
                self.out,
                f"{self.path} holds the beginning of other work",
                "delete it, or give the same options",
            )
        for line in lines[1:]:
            record = FileRecord(bytes=line["bytes"], sha256=line["sha256"])
            path = self.path / line["name"]
            if path.is_file() and path.stat().st_size == record.bytes:
                self.done[line["name"]] = Done(record, line["note"])

    def check_space(self, pieces: Sequence[Piece]) -> None:
        """Raises SaveError if what is left to write does not fit on the disk."""
        need = sum(piece.bytes for piece in pieces if piece.name not in self.done) + SPARE
        partial = sum(path.stat().st_size for path in self.path.rglob("*.part"))
        free = shutil.disk_usage(self.path).free + partial
        if free < need:
            raise SaveError(f"{self.path} needs {readable(need)} of disk space, and {readable(free)} are free")

    def run(self, pieces: Sequence[Piece], workers: int, progress: Progress, watch: Watch) -> None:
        """Makes what is not there yet, `workers` pieces at a time. Files that are no piece are removed first."""
        self.check_space(pieces)
        wanted = {piece.name for piece in pieces}
        for path in self.path.rglob("*"):
            name = str(path.relative_to(self.path))
            if path.is_file() and name != JOURNAL and not (name in self.done and name in wanted):
                path.unlink()
        left = [piece for piece in pieces if piece.name not in self.done]
        progress.start(sum(p.bytes for p in pieces), sum(p.bytes for p in pieces if p.name in self.done))
        stop, slots = threading.Event(), threading.Semaphore(2 * workers)
        settled: list[Future[None]] = []

        def told(count: int) -> None:
            if stop.is_set():
                raise InterruptedError("another piece failed")
            progress.advance(count)

        def settle(piece: Piece, done: Done, descriptor: int) -> None:
            try:
                self._settle(piece, done, descriptor)
            except BaseException:
                stop.set()
                raise
            finally:
                slots.release()

        def make(piece: Piece) -> None:
            slots.acquire()  # so that no more waits for the disk than it takes in a few seconds
            try:
                settled.append(settlers.submit(settle, piece, *self._make(piece, told)))
            except BaseException:
                slots.release()
                raise

        with ThreadPoolExecutor(workers) as settlers, ThreadPoolExecutor(workers) as pool, watch, progress:
            futures = [pool.submit(make, piece) for piece in left]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                wait(settled, return_when=FIRST_EXCEPTION)
                failed = [f.exception() for f in (*settled, *futures) if f.done() and f.exception() is not None]
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
            if failed:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise failed[0]  # type: ignore[misc]  # the others are None

    def write(self, name: str, data: bytes) -> FileRecord:
        """A small file, durable and whole or not there. Not journaled: it is made again by the next run."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_directory(path.parent)
        return FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def finish(self) -> None:
        """Gives the directory its name. It has to be whole by now."""
        self.path.replace(self.out)
        sync_directory(self.out.parent)
        self.close()
        (self.out / JOURNAL).unlink(missing_ok=True)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _make(self, piece: Piece, told: Callable[[int], None]) -> tuple[Done, int]:
        """Writes a piece under its other name; returns a descriptor of it that is still open."""
        part = self._part(piece)
        part.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        with part.open("wb") as raw:
            os.fchmod(raw.fileno(), 0o640)
            file = HashedFile(raw, told)
            note = piece.write(file)
            raw.flush()
            return Done(file.record(), note), os.dup(raw.fileno())  # of one opening: it is told what fails later

    def _settle(self, piece: Piece, done: Done, descriptor: int) -> None:
        """Waits for the disk, in a thread of its own: the next piece is made meanwhile."""
        part, path = self._part(piece), self.path / piece.name
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(path)
        sync_directory(path.parent)
        with self._lock:
            self._note(
                {"name": piece.name, "bytes": done.record.bytes, "sha256": done.record.sha256, "note": done.note}
            )
            self.done[piece.name] = done

    def _part(self, piece: Piece) -> Path:
        path = self.path / piece.name
        return path.with_name(path.name + ".part")

    def _note(self, line: Json) -> None:
        assert self._journal is not None
        self._journal.seek(0, os.SEEK_END)
        self._journal.write(json.dumps(line).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())


def check_target(out: Path, plan_inside: str | None, plan: str) -> bool:
    """True if `out` is this work, done. Raises ConfigError if something else is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if plan_inside == plan:
        (out / JOURNAL).unlink(missing_ok=True)  # left by a run that was killed after it had finished
        return True
    raise ConfigError("--out", out, "is there already and holds something else", "give a new directory")
