"""Ranks on this machine, or the rank that a launcher (torchrun, srun) has made of this process."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from megatron_glmv.platform.device import Platform

T = TypeVar("T")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
GRACE_S = 5.0
"""What the other ranks get to leave by themselves after one has failed."""


@dataclass(frozen=True)
class RankContext:
    """One rank of a world, and where it meets the others."""

    rank: int
    world: int
    local_rank: int
    init_method: str


class RankFailed(RuntimeError):
    """A rank ended badly. `exit_code` is the one to leave with; `exit_codes` has every rank's (negative: signal)."""

    def __init__(self, rank: int, exit_code: int, exit_codes: Sequence[int | None], detail: str) -> None:
        super().__init__(f"rank {rank} {_ended(exit_codes[rank])}{': ' + detail if detail else ''}")
        self.rank, self.exit_code, self.exit_codes = rank, exit_code, list(exit_codes)


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def detect() -> RankContext | None:
    """The rank that torchrun or srun started this process as, by their environment; None where no launcher did."""
    env = os.environ
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} <= env.keys():
        return RankContext(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]), "env://")
    # srun sets these in every task; a shell inside an allocation has SLURM_JOB_ID but no step. A single task may be a
    # person's own `srun --pty`; our job script says that it is a rank.
    if {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_ID"} <= env.keys() and (
        int(env["SLURM_NTASKS"]) > 1 or "GLMV_SRUN" in env
    ):
        address = env.get("MASTER_ADDR") or first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST", ""))
        # Jobs that share a node get ports of their own.
        port = env.get("MASTER_PORT") or str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000)
        return RankContext(
            int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env["SLURM_LOCALID"]), f"tcp://{address}:{port}"
        )
    return None


def first_host(nodelist: str) -> str:
    """First name of a Slurm node list: `a[003-007,9],b1` -> `a003`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodelist)
    if not match:
        raise ValueError(f"no host in the Slurm node list {nodelist!r}")
    return match.group(1) + (match.group(2) or "")


def init_distributed(context: RankContext, platform: Platform, timeout_s: float) -> None:
    """Joins the world. Collective; raises after `timeout_s` where a rank is missing."""
    import torch

    if platform.device.type == "cuda":
        torch.cuda.set_device(context.local_rank)
    elif context.init_method.startswith("file://"):  # all ranks are on this machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        platform.distributed_backend,
        init_method=context.init_method,
        rank=context.rank,
        world_size=context.world,
        timeout=timedelta(seconds=timeout_s),
    )


def launch(
    target: Callable[[RankContext], T],
    world: int,
    *,
    preload: Sequence[str] = (),
    method: str = "forkserver",
    on_ranks: Callable[[list[int]], None] | None = None,
) -> list[T]:
    """Runs `target` in `world` processes and returns what each returned, by rank.

    The first rank that fails ends the others within seconds and is raised as RankFailed; its own exit code (from
    SystemExit or from an exception's `exit_code`) is the one to leave with. SIGTERM, SIGINT and SIGUSR1 to this process
    go to all ranks. A file is the meeting point: no port to collide on. `target` must be picklable; `preload` names
    modules that a fork server imports once for all ranks of this and later launches. `on_ranks` is told the process
    ids.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context: Any = mp.get_context(method)
    if method == "forkserver":
        _share_import_path()
        context.set_forkserver_preload(list(preload))
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        rendezvous = Path(folder, "rendezvous").as_uri()
        ranks, answers = [], []
        lifeline, held_here = context.Pipe(duplex=False)  # closed by the system when this process ends, however it ends
        for rank in range(world):
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank, args=(target, RankContext(rank, world, rank, rendezvous), sending, lifeline), daemon=False
            )
            process.start()
            sending.close()
            ranks.append(process)
            answers.append(receiving)
        with _forward_signals(ranks):
            try:
                if on_ranks is not None:
                    on_ranks([process.pid for process in ranks])
                return _collect(ranks, answers)
            finally:
                _end(ranks)
                held_here.close()
                lifeline.close()


def _rank(target: Callable[[RankContext], Any], context: RankContext, answer: Connection, lifeline: Connection) -> None:
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_leave_with_launcher, args=(lifeline,), daemon=True).start()
    try:
        result = target(context)
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else getattr(error, "exit_code", 1)
        expected = isinstance(error, SystemExit) or hasattr(error, "exit_code")
        detail = str(error) if expected else traceback.format_exc()
        with contextlib.suppress(OSError):
            answer.send((False, detail))
            answer.close()
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)  # a failed rank does not wait for its peers in destructors
    answer.send((True, result))
    answer.close()


def _leave_with_launcher(lifeline: Connection) -> None:
    """A launcher that was killed leaves no ranks behind. The parent of a rank is the fork server, which lives as long
    as its children do, so that the parent's end is no sign."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


def _collect(ranks: list[Any], answers: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    details: dict[int, str] = {}
    while len(results) < len(ranks):
        for rank, answer in enumerate(answers):
            if rank in results or rank in details or not answer.poll():
                continue
            try:
                fine, value = answer.recv()
            except EOFError:
                details.setdefault(rank, "")
                continue
            (results if fine else details)[rank] = value
        codes = [process.exitcode for process in ranks]
        bad = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if bad:
            first = next((rank for rank in bad if details.get(rank)), bad[0])
            code = codes[first]
            raise RankFailed(first, code if code > 0 else 1, codes, details.get(first, ""))
        time.sleep(0.02)
    for process in ranks:
        process.join()
    return [results[rank] for rank in range(len(ranks))]


def _end(ranks: list[Any]) -> None:
    """Terminates what still runs, then kills."""
    deadline = time.monotonic() + GRACE_S
    running = [process for process in ranks if process.is_alive()]
    for process in running:
        process.kill() if time.monotonic() > deadline else process.terminate()
    while running and time.monotonic() < deadline:
        running = [process for process in running if process.is_alive()]
        time.sleep(0.02)
    for process in running:
        process.kill()
    for process in ranks:
        process.join()


@contextlib.contextmanager
def _forward_signals(ranks: list[Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, _: FrameType | None) -> None:
        for process in ranks:
            if process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _share_import_path() -> None:
    """In Python 3.11 a fork server gets no sys.path, and an ImportError of a preloaded module is swallowed there."""
    wanted = [str(Path(entry).resolve()) for entry in sys.path if entry]
    have = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if not set(wanted) <= set(have):  # in the order of sys.path: of two copies of a package, the one in use
        os.environ["PYTHONPATH"] = os.pathsep.join([*wanted, *(entry for entry in have if entry not in wanted)])
