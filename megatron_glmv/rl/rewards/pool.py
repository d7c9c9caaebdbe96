"""A few processes that judge untrusted text, each call under a limit of time and memory kept from outside.

A call that is late has its process killed, with its process group; one that eats its memory ends itself. Both cost
that call its reward (a death only at the second time) and nobody else anything. The processes are started with an
empty environment, talk JSON through pipes, and never share memory with the trainer: its state is neither copied (fork)
nor reachable.

They outlive no trainer: an idle one sees its pipe closed, a busy one runs into its limit of CPU seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = str(Path(__file__).resolve().parents[3])
"""Where the package lies: the processes ignore PYTHONPATH and the working directory."""
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from megatron_glmv.rl.rewards.worker import main; main()"
START_SECONDS = 60.0
"""For importing, on a busy machine; 1-2 s are usual. Not counted to a call."""
MAX_STARTS = 3
"""Processes in a row that end before they are ready: then something is broken, and it is said."""
MAX_REPLY = 1 << 20
TIMEOUT, DIED = "timeout", "died"


@dataclass(frozen=True)
class Call:
    """One call: a JSON object for the worker, and its limit."""

    payload: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Reply:
    """`value` is the worker's JSON object, or None and `failure` says "timeout" or "died"."""

    value: dict[str, Any] | None
    failure: str
    seconds: float


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    deadline: float
    outgoing: bytes = b""
    incoming: bytearray = field(default_factory=bytearray)
    ready: bool = False
    job: int | None = None
    started: float = 0.0

    @property
    def inbox(self) -> int:
        assert self.process.stdin is not None
        return self.process.stdin.fileno()

    @property
    def outbox(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()


class Pool:
    """Processes start with the first call. `run` may be called from any thread; calls of two threads queue up."""

    def __init__(self, workers: int, memory_mib: int, boot: str = BOOT) -> None:
        self._size = workers
        self._command = [sys.executable, "-I", "-c", boot, ROOT, str(memory_mib)]
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._failed_starts = 0
        self._waiting: deque[int] = deque()
        self._again: set[int] = set()

    def run(self, calls: Sequence[Call]) -> list[Reply]:
        """One reply a call, in order. Raises RuntimeError where no process comes up at all."""
        with self._lock:
            return self._run(calls)

    def close(self) -> None:
        with self._lock:
            while self._workers:
                self._discard(self._workers[-1])

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def _run(self, calls: Sequence[Call]) -> list[Reply]:
        replies: list[Reply | None] = [None] * len(calls)
        waiting = deque(range(len(calls)))
        self._waiting, self._again = waiting, set()
        for worker in [w for w in self._workers if w.process.poll() is not None]:
            self._discard(worker)
        try:
            while waiting or any(worker.job is not None for worker in self._workers):
                while len(self._workers) < min(self._size, len(calls)) and waiting:
                    self._start()
                for worker in self._workers:
                    if worker.ready and worker.job is None and waiting:
                        self._give(worker, waiting.popleft(), calls)
                self._turn(replies)
        except BaseException:
            for worker in [w for w in self._workers if w.job is not None]:
                self._discard(worker)
            raise
        assert all(reply is not None for reply in replies)
        return [reply for reply in replies if reply is not None]

    def _start(self) -> None:
        if self._failed_starts >= MAX_STARTS:
            self._failed_starts = 0
            raise RuntimeError(
                f"{MAX_STARTS} verifier processes ended before they were ready; "
                f"to see why: {shlex.join(self._command)} < /dev/null"
            )
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
        worker = _Worker(process, time.monotonic() + START_SECONDS)
        os.set_blocking(worker.inbox, False)
        os.set_blocking(worker.outbox, False)
        self._workers.append(worker)

    def _give(self, worker: _Worker, job: int, calls: Sequence[Call]) -> None:
        call = calls[job]
        worker.outgoing = json.dumps({**call.payload, "seconds": call.seconds}, default=str).encode() + b"\n"
        worker.incoming.clear()
        worker.job, worker.started = job, time.monotonic()
        worker.deadline = worker.started + call.seconds

    def _turn(self, replies: list[Reply | None]) -> None:
        """Wait until a pipe moves or the next deadline, and act on it."""
        busy = [worker for worker in self._workers if not worker.ready or worker.job is not None]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.outbox, selectors.EVENT_READ, worker)
                if worker.outgoing:
                    selector.register(worker.inbox, selectors.EVENT_WRITE, worker)
            patience = min((worker.deadline for worker in busy), default=0.0) - time.monotonic()
            events = selector.select(max(0.0, patience))
        for key, mask in events:
            worker = key.data
            if worker not in self._workers:
                continue
            if mask & selectors.EVENT_WRITE:
                with contextlib.suppress(BrokenPipeError, BlockingIOError):
                    worker.outgoing = worker.outgoing[os.write(worker.inbox, worker.outgoing[: 1 << 16]) :]
            else:
                self._read(worker, replies)
        now = time.monotonic()
        for worker in [w for w in self._workers if (not w.ready or w.job is not None) and now >= w.deadline]:
            self._end(worker, TIMEOUT, replies)

    def _read(self, worker: _Worker, replies: list[Reply | None]) -> None:
        data = os.read(worker.outbox, 1 << 16)
        worker.incoming += data
        if not data or len(worker.incoming) > MAX_REPLY:
            self._end(worker, DIED, replies)
        elif worker.incoming.endswith(b"\n"):
            if worker.job is None:
                worker.ready, self._failed_starts = True, 0
                return
            value = json.loads(worker.incoming)
            replies[worker.job] = Reply(value, "", time.monotonic() - worker.started)
            worker.job = None

    def _end(self, worker: _Worker, failure: str, replies: list[Reply | None]) -> None:
        if failure == DIED and worker.job is not None and worker.job not in self._again:
            # once more: it may have been killed while it was idle, or by a neighbour's hunger for memory
            self._again.add(worker.job)
            self._waiting.appendleft(worker.job)
        elif worker.job is not None:
            replies[worker.job] = Reply(None, failure, time.monotonic() - worker.started)
        elif not worker.ready:
            self._failed_starts += 1
        self._discard(worker)

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        for pipe in (worker.process.stdin, worker.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
