"""The decoder processes of one rank: packs go out in turn, batches come back in the order they were asked for.

A process that dies or stays silent is replaced. The pack it worked at is tried again sample by sample; the sample that
kills or stalls it a second time becomes a hole like any other that cannot be decoded. So the order of batches never
changes, and one poisonous file does not stop a run.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import megatron_glmv
from megatron_glmv.data.batches import CPU, Failure, Pack
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.lengths import Layouts
from megatron_glmv.data.transport import Closed, receive, send
from megatron_glmv.data.types import Json, PackedBatch

START_SECONDS = 300.0
"""A process may take this long to import torch and open the data set: many start at once on a shared file system."""
START_FAILURES = 2
"""Deaths in a row before any answer after which a process is not started again."""


def describe(layouts: Layouts, device: torch.device = CPU) -> Json:
    """What a worker needs to make the same batches."""
    return {
        "dataset": str(layouts.dataset.directory.resolve()),
        "tokenizer": str(layouts.tokenizer.directory.resolve()),
        "data": asdict(layouts.data),
        "vision": asdict(layouts.vision),
        "device": str(device),
    }


@dataclass
class _Task:
    """A pack on its way."""

    pack: Pack
    careful: bool = False
    at: int | None = None
    """Place in the pack of the sample that was announced last."""
    condemned: dict[int, str] = field(default_factory=dict)


class _Process:
    """One worker process and the sockets to it."""

    def __init__(self, about: Json, module: str) -> None:
        self.channel, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        env = dict(os.environ, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
        if about["device"] == "cpu":  # a process that needs no GPU must not make a context on one
            env["CUDA_VISIBLE_DEVICES"] = ""
        root = str(Path(megatron_glmv.__file__).parents[1])
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(lifeline)],
                pass_fds=(theirs.fileno(), lifeline),
                stdin=subprocess.DEVNULL,
                env=env,
            )
        finally:
            theirs.close()
            os.close(lifeline)
        self.channel.settimeout(START_SECONDS)
        self.end = weakref.finalize(self, _end, os.getpid(), self.process, self.channel, self._lifeline)
        """Stops it now, also when it is forgotten or the interpreter ends."""
        with suppress(Closed):  # found when its first answer is waited for
            send(self.channel, about)

    def fate(self) -> str:
        """How a process ended whose channel closed."""
        code = self.process.wait()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _end(owner: int, process: subprocess.Popen[bytes], channel: socket.socket, lifeline: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the rank
    channel.close()
    os.close(lifeline)
    process.kill()
    process.wait()


class WorkerPool:
    """`workers` decoder processes. Use from one thread."""

    def __init__(
        self,
        layouts: Layouts,
        workers: int,
        timeout: float,
        *,
        device: torch.device = CPU,
        module: str = "megatron_glmv.data.worker",
    ) -> None:
        """device: what they decode on. timeout: seconds without a sign of life from a process that is waited for.
        module: what a process runs."""
        self._layouts, self._about = layouts, describe(layouts, device)
        self._timeout, self._module = timeout, module
        self._tasks: list[OrderedDict[int, _Task]] = [OrderedDict() for _ in range(workers)]
        self._unheard = [0] * workers
        """Deaths of each process since it last answered."""
        self._done: dict[int, tuple[PackedBatch, list[Failure]]] = {}
        self._place: dict[int, int] = {}
        """Task -> its worker. In turn by submission: a replica's pack numbers may all be multiples of one number."""
        self._submitted = 0
        self._processes = [_Process(self._about, module) for _ in range(workers)]

    def submit(self, task: int, pack: Pack) -> None:
        """Ask for a pack under a number that is not in use."""
        worker = self._place[task] = self._submitted % len(self._processes)
        self._submitted += 1
        self._tasks[worker][task] = _Task(pack)
        self._request(worker, task)

    def result(self, task: int) -> tuple[PackedBatch, list[Failure]]:
        """Wait for a pack asked for. Raises DataError where a worker found the data set unusable or cannot run, and
        RuntimeError with the worker's traceback for a fault of the program."""
        worker = self._place[task]
        while task not in self._done:
            try:
                self._listen(worker)
            except Closed:
                self._replace(worker, self._processes[worker].fate())
            except TimeoutError:
                self._replace(worker, f"was silent for {self._processes[worker].channel.gettimeout():g} s")
        del self._place[task]
        return self._done.pop(task)

    def forget(self, tasks: Sequence[int]) -> None:
        """Results that nobody will ask for."""
        for task in tasks:
            self._done.pop(task, None)
            if task in self._place:
                self._tasks[self._place.pop(task)].pop(task, None)

    def close(self) -> None:
        for process in self._processes:
            process.end()
        self._processes = []

    @property
    def pids(self) -> list[int]:
        return [process.process.pid for process in self._processes]

    def _request(self, worker: int, number: int) -> None:
        task = self._tasks[worker][number]
        request: Json = {"task": number, "samples": task.pack.samples, "lengths": task.pack.lengths}
        request |= {"starts": task.pack.starts, "careful": task.careful, "condemned": task.condemned}
        with suppress(Closed, TimeoutError):  # found, and the request repeated, when its result is waited for
            send(self._processes[worker].channel, request)

    def _listen(self, worker: int) -> None:
        message, tensors = receive(self._processes[worker].channel)
        if "data_error" in message:
            where, reason = message["data_error"]
            raise DataError(where, reason)
        if "crash" in message:
            raise RuntimeError(f"a data worker failed:\n{message['crash']}")
        if "ready" in message:
            self._processes[worker].channel.settimeout(self._timeout)
            return
        self._unheard[worker] = 0
        task = self._tasks[worker].get(message["task"])
        if task is None:
            return  # forgotten meanwhile
        if "at" in message:
            task.at = int(message["at"])
            return
        fields: dict[str, Any] = {name: tuple(message[name]) for name in ("sample_ids", "failed", "decoders")}
        failures = [Failure(*failure) for failure in message["failures"]]
        del self._tasks[worker][message["task"]]
        self._done[message["task"]] = PackedBatch(**fields | tensors), failures

    def _replace(self, worker: int, how: str) -> None:
        """Start a dead or silent process again and repeat what it was asked, the pack it worked at with care."""
        self._processes[worker].end()
        task = next(iter(self._tasks[worker].values()))
        if task.at is not None:
            task.condemned[task.at] = f"the decoder {how}"
            task.at = None
        elif self._unheard[worker] >= START_FAILURES:
            keys = [self._layouts.dataset.entry(i).key for i in task.pack.samples]
            raise DataError(
                self._layouts.dataset.directory,
                f"data worker {how} before it began, {self._unheard[worker] + 1} times in a row; pack of {keys}",
            )
        task.careful = True
        self._unheard[worker] += 1
        self._processes[worker] = _Process(self._about, self._module)
        for number in self._tasks[worker]:
            self._request(worker, number)
